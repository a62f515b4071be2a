"""A transformer wired by hand, whose every number can be worked out on paper.

Attention only, three layers of two heads, no norm, no biases but one in the queries. It does the task of the
book, "When John and Mary went to the store, John gave a drink to" -> " Mary", by the chain of Wang et al. (2022,
figure 2) with one head for each step:

====  ====================  =========================================================================
head  job                   what it does
====  ====================  =========================================================================
0.0   duplicate token       S2 attends to S1; writes "John was seen before" at S2.
0.1   previous token        Every position attends to the one before and writes its token. Nothing
                            reads it: a clear pattern with no effect at all.
1.0   S-inhibition          END attends to S2, because 0.0 marked it; moves "John" to "not John" at END.
1.1   nothing               All its weights are zero: it attends evenly and writes nothing.
2.0   name mover            END attends to every name that 1.0 hasn't ruled out, so to IO; adds `MOVER`.
2.1   negative name mover   Attends where 2.0 does; takes `NEGATIVE` away.
====  ====================  =========================================================================

A head with nothing to do attends to BOS and writes nothing. " to" stands for END: the toy knows the end of a
prompt by its last word.

The stream is a row of labelled spaces, one dimension for each token or position in it: `tok` and `pos` hold what
the embedding writes, `dup` what 0.0 writes, `prev` 0.1, `not` 1.0, and `out` the name movers. The unembedding
reads `out` alone, so a logit is the number that stands there.

On an IOI prompt, whichever name comes first, the logit difference logit(IO) - logit(S) is

* `MOVER - NEGATIVE` = +4: 2.0 and 2.1 attend to IO with weight 1, and every other logit is 0;
* `-(MOVER - NEGATIVE) / 3` with 0.0 or 1.0 ablated (set to zero): the movers spread over IO, S1 and S2, and S
  stands there twice;
* `-NEGATIVE` with 2.0 ablated, `+MOVER` with 2.1 ablated;
* `MOVER - NEGATIVE`, unchanged, with 0.1 or 1.1 ablated;
* 0 between any two of three different names.

Attention is exact up to exp(-SHARP), which is 1e-13.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from labcode.models import quiet

if TYPE_CHECKING:
    import torch
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import PreTrainedTokenizerFast

BOS = "<|bos|>"
UNKNOWN = "<|unk|>"
PAD = "<|pad|>"
NAMES = ("John", "Mary", "Tom", "Anna", "James", "Lucy", "David", "Sarah", "Mark", "Kate")
FIRST = "When Then After While Yesterday Because As The Last Before".split()
# Every word of the templates of labcode.prompts, so that populations can be made of them.
WORDS = (
    "and to the a at in as from where went met were waiting walked alone had soon left gave handed offered passed "
    "showed moment reached threw week visited sold home brought talking outside decided give "
    "store park school office station garden restaurant library hospital market "
    "drink book ring letter ball key camera coat picture basket"
).split()
VOCAB = [BOS, UNKNOWN, PAD, ",", ".", *FIRST, *(f" {name}" for name in NAMES), *(f" {word}" for word in WORDS)]

MOVER = 6.0
NEGATIVE = 2.0
SHARP = 30.0
N_CTX = 32
# At least one dimension for each token, so that a head can copy any; and a square, so that scores are exact.
D_HEAD = 100

# Where each space begins and ends in the stream.
SPACES: dict[str, slice] = {}
_at = 0
for _name, _width in (
    ("tok", len(VOCAB)),
    ("pos", N_CTX),
    ("dup", len(NAMES)),
    ("prev", len(VOCAB)),
    ("not", len(NAMES)),
    ("out", len(VOCAB)),
):
    SPACES[_name] = slice(_at, _at + _width)
    _at += _width
D_MODEL = _at


def build() -> TransformerBridge:
    """The toy as a bridge with the hook names of the real models, float32, gradients off."""
    import torch
    from transformer_lens.config import TransformerBridgeConfig
    from transformer_lens.model_bridge import TransformerBridge

    with quiet():
        config = TransformerBridgeConfig(
            d_model=D_MODEL,
            d_head=D_HEAD,
            n_heads=2,
            n_layers=3,
            n_ctx=N_CTX,
            d_vocab=len(VOCAB),
            attn_only=True,
            normalization_type=None,
            init_weights=False,
        )
        model = TransformerBridge.boot_native(config, tokenizer=tokenizer(), model_name="toy")
        with torch.no_grad():
            _wire(model.original_model)
        # Only the hook names of compatibility mode: centring would move the numbers set by hand.
        model.enable_compatibility_mode(disable_warnings=True, no_processing=True)
    model.eval()
    model.requires_grad_(False)
    return model


def tokenizer() -> PreTrainedTokenizerFast:
    """One token for each word with the space before it, as in the real models; built in memory."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel({token: i for i, token in enumerate(VOCAB)}, unk_token=UNKNOWN))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r" ?[^\s,.]+|[,.]"), behavior="isolated")
    backend.decoder = decoders.Fuse()
    backend.post_processor = processors.TemplateProcessing(f"{BOS} $A", special_tokens=[(BOS, VOCAB.index(BOS))])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=BOS,
        eos_token=BOS,
        unk_token=UNKNOWN,
        pad_token=PAD,
        model_max_length=N_CTX,
        # Without these two the bridge asks for the tokenizer again, from a folder that isn't there.
        add_bos_token=True,
        name_or_path="toy",
    )


class HeadWeights:
    """Views of one head's weights, to be filled in: `q`, `k`, `v` [d_head, d_model], `o` [d_model, d_head]."""

    def __init__(self, attention: Any, index: int) -> None:
        rows = slice(index * D_HEAD, (index + 1) * D_HEAD)
        self.q = attention.q.weight[rows]
        self.k = attention.k.weight[rows]
        self.v = attention.v.weight[rows]
        self.o = attention.o.weight[:, rows]
        self.always = attention.q.bias[rows]

    def attend(self, rows: slice, query: torch.Tensor, key: torch.Tensor) -> None:
        """Let some dimensions of the head compare query and key; the scores are divided by sqrt(d_head)."""
        self.q[rows] = query * math.sqrt(D_HEAD)
        self.k[rows] = key

    def rest_on_bos(self) -> None:
        """Give BOS a score of `SHARP` from everywhere: the place to look when there is nothing to find."""
        self.always[D_HEAD - 1] = SHARP * math.sqrt(D_HEAD)
        self.k[D_HEAD - 1] = _read("tok", [VOCAB.index(BOS)])[0]

    def write(self, value: torch.Tensor, space: str, size: float = 1.0) -> None:
        """Copy what `value` reads, dimension by dimension, into a space of the stream."""
        width = value.shape[0]
        self.v[:width] = value
        where = _ids() if space == "out" else range(width)
        for row, column in zip(where, range(width), strict=True):
            self.o[SPACES[space].start + row, column] = size


def _ids() -> list[int]:
    return [VOCAB.index(f" {name}") for name in NAMES]


def _read(space: str, which: list[int] | None = None) -> torch.Tensor:
    """[n, d_model]: one row for each dimension of a space, or for some of them."""
    import torch

    rows = torch.eye(D_MODEL)[SPACES[space]]
    return rows if which is None else rows[which]


def _wire(native: Any) -> None:
    for parameter in native.parameters():
        parameter.zero_()
    native.tok_embed.weight[:, SPACES["tok"]].fill_diagonal_(1.0)
    native.pos.weight[:, SPACES["pos"]].fill_diagonal_(1.0)
    native.head.weight[:, SPACES["out"]].fill_diagonal_(1.0)

    names, positions = _read("tok", _ids()), _read("pos")
    end = _read("tok", [VOCAB.index(" to")])
    n = len(NAMES)

    # 0.0: the same name scores 2 SHARP, BOS 1 SHARP; the name itself, at its own position, gets it taken away.
    duplicate = HeadWeights(native.layers[0].attn, 0)
    duplicate.attend(slice(0, n), 2 * SHARP * names, names)
    duplicate.attend(slice(n, n + N_CTX), -2 * SHARP * positions, positions)
    duplicate.rest_on_bos()
    duplicate.write(names, "dup")

    # 0.1: position i looks for position i - 1.
    previous = HeadWeights(native.layers[0].attn, 1)
    previous.attend(slice(0, N_CTX - 1), SHARP * positions[1:], positions[:-1])
    previous.write(_read("tok"), "prev")

    # 1.0: " to" looks for any mark of 0.0.
    inhibition = HeadWeights(native.layers[1].attn, 0)
    inhibition.attend(slice(0, 1), 2 * SHARP * end, _read("dup").sum(0, keepdim=True))
    inhibition.rest_on_bos()
    inhibition.write(_read("dup"), "not")

    # 2.0 and 2.1: " to" looks for any name, but not for one in its own "not" space.
    for index, size in ((0, MOVER), (1, -NEGATIVE)):
        mover = HeadWeights(native.layers[2].attn, index)
        mover.attend(slice(0, 1), 2 * SHARP * end, names.sum(0, keepdim=True))
        mover.attend(slice(1, 1 + n), -2 * SHARP * _read("not"), names)
        mover.rest_on_bos()
        mover.write(names, "out", size)
