"""The toy's tokenizer: one token for each word with the space before it, as in the real models."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
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


def tokenizer(n_ctx: int) -> PreTrainedTokenizerFast:
    """A tokenizer over `VOCAB`, built in memory; a word that isn't in it becomes the token for unknown words.

    Args:
        n_ctx: Longest prompt, in tokens.
    """
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
        model_max_length=n_ctx,
        # Without these two the bridge asks for the tokenizer again, from a folder that isn't there.
        add_bos_token=True,
        name_or_path="toy",
    )
