"""Latents of a sparse autoencoder: where they fire, what they are near to, what they promote, and edits of them.

A token's residual vector h is encoded into a code, of which at most k entries are not zero. Position 0 has no code: the
autoencoder was not trained on it.

An edit changes the code of a token and leaves the rest: h' = h + (new code - code) @ W_dec. So what the autoencoder
does not explain, the error term, stays in the stream, and changing nothing changes nothing. A plain hook on the plain
bridge does this. `sae_lens.SAETransformerBridge` can do it too, but once an autoencoder was attached there, ordinary
hooks at that place never fire again, and by default its splice drops the error term.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from labcode.errors import SaeError
from labcode.forward import Network, Run, Suffix, record
from labcode.heads import check_heads
from labcode.inputs import guard, shown
from labcode.metrics import logit_difference
from labcode.progress import progress
from labcode.sae import (
    Activations,
    check_contexts,
    check_fits,
    check_latents,
    check_weights,
    collect,
    hook,
    layer_of,
    residual,
)

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor
    from transformer_lens.model_bridge import TransformerBridge

    from labcode.heads import Node
    from labcode.prompts import Population

LEAST_GAP = 0.3  # between the rates at repeated and at first occurrences
LEAST_RATIO = 5.0
WORD = re.compile(r" ?[A-Za-z]{4,}")

Change = Callable[["Float[Tensor, 'batch pos d_sae']"], "Float[Tensor, 'batch pos d_sae']"]


@dataclass(frozen=True)
class Codes:
    """The code of every token of a corpus, by its largest entries.

    Attributes:
        tokens: the contexts. values, index: activation and number of each token's latents; unused places hold 0.
        d_sae: latents of the autoencoder.
    """

    tokens: Int[Tensor, "context pos"]
    values: Float[Tensor, "context pos k"]
    index: Int[Tensor, "context pos k"]
    d_sae: int

    def __getitem__(self, contexts: slice) -> Codes:
        """Those of some contexts."""
        return Codes(self.tokens[contexts], self.values[contexts], self.index[contexts], self.d_sae)

    def of(self, latent: int) -> Float[Tensor, "context pos"]:
        """The activation of one latent at every token.

        Raises:
            SaeError: no such latent.
        """
        if latent not in range(self.d_sae):
            raise SaeError(f"no latent {latent}: this autoencoder has {self.d_sae}, counted from 0")
        latents, places, values = self._firings
        first, last = torch.searchsorted(latents, torch.tensor([latent, latent + 1])).tolist()
        found = torch.zeros(self.tokens.numel())
        found[places[first:last]] = values[first:last]
        return found.view(self.tokens.shape)

    @cached_property
    def _firings(self) -> tuple[Tensor, Tensor, Tensor]:
        """Of everything that is active, sorted by latent: number of the latent, of the token, and the activation."""
        context, position, place = (self.values > 0).nonzero().T
        latents, order = self.index[context, position, place].long().sort()
        tokens = context * self.tokens.shape[1] + position
        return latents, tokens[order], self.values[context, position, place][order]

    @cached_property
    def density(self) -> Float[Tensor, " d_sae"]:
        """The share of tokens at which each latent fires, position 0 not counted."""
        fired = torch.bincount(self.index[self.values > 0].long(), minlength=self.d_sae)
        return fired.float() / self.tokens[:, 1:].numel()


def scan(
    model: TransformerBridge,
    sae: Any,
    tokens: Int[Tensor, "context pos"],
    layer: int | None = None,
    batch_size: int = 32,
    keep: bool = False,
) -> Codes:
    """The codes of a corpus.

    Args:
        keep: the stream is taken from the cache folder and kept there, as by `sae.collect`; massive vectors then have
            no code.

    Raises:
        SaeError: an autoencoder that does not fit the model, or no contexts.
    """
    check_contexts(tokens)
    check_weights(sae, model)
    if keep:
        return codes_of(collect(model, tokens, _layer(model, sae, layer), keep=True), sae, tokens)
    parts = []
    for piece in progress(tokens.split(batch_size), "codes", -(-len(tokens) // batch_size)):
        parts.append(_active(codes(model, sae, piece, layer)))
    most = max(values.shape[-1] for values, _ in parts)
    values, index = (torch.cat([_widened(part[i], most) for part in parts]) for i in (0, 1))
    return Codes(tokens, values, index, sae.cfg.d_sae)


def codes_of(acts: Activations, sae: Any, tokens: Int[Tensor, "context pos"]) -> Codes:
    """Codes from activations that were collected already; vectors that were left out as massive have none."""
    with torch.no_grad():
        parts = [_active(sae.encode(piece.float())) for piece in acts.values.split(4096)]
    most = max((values.shape[-1] for values, _ in parts), default=1)
    values, index = torch.zeros(*tokens.shape, most), torch.zeros(*tokens.shape, most, dtype=torch.int32)
    place = acts.context, acts.position
    if parts:
        values[place], index[place] = (torch.cat([_widened(part[i], most) for part in parts]) for i in (0, 1))
    return Codes(tokens, values, index, sae.cfg.d_sae)


def codes(
    model: TransformerBridge, sae: Any, tokens: Int[Tensor, "batch pos"], layer: int | None = None
) -> Float[Tensor, "batch pos d_sae"]:
    """The codes of a few prompts, dense, in float32; zero at position 0.

    Raises:
        SaeError: an autoencoder that does not fit the model.
    """
    return encode(sae, stream(model, sae, tokens, layer))


def stream(
    model: TransformerBridge, sae: Any, tokens: Int[Tensor, "batch pos"], layer: int | None = None
) -> Float[Tensor, "batch pos d_model"]:
    """What the autoencoder reads: the output of its block."""
    return residual(model, tokens, _layer(model, sae, layer))


def encode(sae: Any, h: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_sae"]:
    """`sae.encode`, with nothing at position 0."""
    if h.shape[-1] != (width := getattr(sae.cfg, "d_in", h.shape[-1])):
        raise SaeError(f"vectors of {h.shape[-1]} numbers, and this autoencoder reads {width}")
    with torch.no_grad():
        code = sae.encode(h)
    code[:, 0] = 0.0
    return code


def _layer(model: TransformerBridge, sae: Any, layer: int | None) -> int:
    layer = layer_of(sae) if layer is None else layer
    check_fits(sae, model, layer)
    return layer


def _active(code: Float[Tensor, "*token d_sae"]) -> tuple[Tensor, Tensor]:
    """Values and numbers of the active latents of each token, in as many places as the token with most of them needs.

    An autoencoder may use more than the k that it says: one trained by BatchTopK does so at every other token.
    """
    top = code.topk(max(1, int((code > 0).sum(-1).max())), dim=-1)
    return top.values, top.indices.to(torch.int32)


def _widened(part: Tensor, k: int) -> Tensor:
    return torch.nn.functional.pad(part, (0, k - part.shape[-1]))


def neighbours(sae: Any, latent: int, n: int = 8) -> list[tuple[int, float]]:
    """The latents whose decoder directions are nearest to that of `latent`, with their cosines.

    Raises:
        SaeError: no such latent.
    """
    check_latents(sae, [latent])
    directions = torch.nn.functional.normalize(sae.W_dec.detach(), dim=-1)
    cosine = directions @ directions[latent]
    cosine[latent] = -torch.inf
    best = cosine.topk(min(n, len(cosine) - 1))
    return [(int(i), float(c)) for c, i in zip(best.values, best.indices, strict=True)]


def match(a: Any, b: Any) -> tuple[Int[Tensor, " d_sae"], Float[Tensor, " d_sae"]]:
    """Each latent of `a` with one of `b`, none twice, so that the cosines of their directions add up to the most.

    The cosine keeps its sign: an activation is never negative, so an opposite direction is another latent. Without the
    condition *none twice* one latent of `b` may be the partner of many, and a small dictionary looks like a large one.

    Args:
        a, b: autoencoders, or directions [latent d_model], to have a match by chance beside.

    Returns:
        For each latent of `a`, its partner, and the cosine; -1 and NaN where `b` is smaller and none was left.

    Raises:
        SaeError: directions of another width, or autoencoders of two layers, where directions mean nothing in common.
    """
    for x in (a, b):
        if getattr(x, "ndim", getattr(getattr(x, "W_dec", None), "ndim", 0)) != 2:
            raise SaeError(f"{shown(x)} is neither an autoencoder nor directions [latent d_model]")
    from scipy.optimize import linear_sum_assignment

    rows = [x if isinstance(x, torch.Tensor) else x.W_dec.detach() for x in (a, b)]
    if rows[0].shape[1] != rows[1].shape[1]:
        raise SaeError(f"directions of {rows[0].shape[1]} and {rows[1].shape[1]} numbers can't be compared")
    places = [getattr(getattr(getattr(x, "cfg", None), "metadata", None), "hook_name", None) for x in (a, b)]
    if all(places) and layer_of(a) != layer_of(b):
        raise SaeError(f"directions at {places[0]} and at {places[1]} can't be compared: two layers, two streams")
    directions = [torch.nn.functional.normalize(x, dim=-1) for x in rows]
    cosine = directions[0] @ directions[1].T
    ours, theirs = map(torch.as_tensor, linear_sum_assignment(cosine.numpy(), maximize=True))
    partner = torch.full((len(cosine),), -1)
    partner[ours] = theirs
    found = torch.full((len(cosine),), torch.nan)
    found[ours] = cosine[ours, theirs]
    return partner, found


def promoted(
    model: TransformerBridge,
    sae: Any,
    latent: int,
    used: Bool[Tensor, " d_vocab"] | None = None,
    n: int = 10,
) -> tuple[list[tuple[int, float]], list[tuple[int, float]]]:
    """Tokens whose logits a latent's decoder direction raises and lowers most, if nothing came after.

    The direction goes through the scale of the final norm and the unembedding, and the mean over tokens is taken off.

    Args:
        used: tokens to choose among, such as `Corpus.used`; others are often ones that training never touched.

    Returns:
        (token id, logit per unit of activation, norm left out) of the n highest, and of the n lowest.

    Raises:
        SaeError: no such latent.

    Limits: for a latent of an early layer most of the way to the logits is still to come, so this says little.
    """
    check_latents(sae, [latent])
    direction = sae.W_dec[latent].detach()
    scale = getattr(model.ln_final, "w", None)
    logits = (direction if scale is None else direction * scale) @ model.W_U
    chosen = torch.ones(len(logits), dtype=torch.bool) if used is None else used
    logits = logits - logits[chosen].mean()
    high = logits.masked_fill(~chosen, -torch.inf).topk(min(n, int(chosen.sum())))
    low = logits.masked_fill(~chosen, torch.inf).topk(min(n, int(chosen.sum())), largest=False)
    return tuple([(int(i), float(v)) for v, i in zip(t.values, t.indices, strict=True)] for t in (high, low))  # type: ignore


@dataclass(frozen=True)
class Rates:
    """How often latents fire at words, given whether the word stood earlier in the same context.

    Attributes:
        repeat, first: rate at repeated and at first occurrences, of each latent.
        n_repeat, n_first: how many of each there are.
    """

    repeat: Float[Tensor, " d_sae"]
    first: Float[Tensor, " d_sae"]
    n_repeat: int
    n_first: int

    @property
    def gap(self) -> Float[Tensor, " d_sae"]:
        """The difference of the two rates."""
        return self.repeat - self.first

    def duplicate(self) -> list[int]:
        """The latents that meet the criterion, widest gap first: `LEAST_GAP`, and a rate `LEAST_RATIO` times higher.

        The criterion knows nothing of names, of positions or of what an ablation does.
        """
        meets = (self.gap >= LEAST_GAP) & (self.repeat >= LEAST_RATIO * self.first)
        return sorted(meets.nonzero()[:, 0].tolist(), key=lambda i: -float(self.gap[i]))


def rates(codes: Codes, words: Bool[Tensor, " d_vocab"]) -> Rates:
    """Firing rates at words, from the codes of a corpus.

    Args:
        words: which tokens count as words, see `words`. Words are judged by token: a word of several tokens counts by
            its first piece if that looks like a word.

    Raises:
        SaeError: no word of the corpus is repeated in its context, or another vocabulary.
    """
    _check_vocabulary(codes, words)
    seen = repeated(codes.tokens)
    word = words[codes.tokens]
    word[:, 0] = False
    counts = []
    for mask in (seen & word, ~seen & word):
        if not mask.any():
            raise SaeError("this corpus has no repeated words, or none that are new: take more contexts")
        fired = codes.index[mask][codes.values[mask] > 0].long()
        counts.append((torch.bincount(fired, minlength=codes.d_sae) / mask.sum(), int(mask.sum())))
    (repeat, n_repeat), (first, n_first) = counts
    return Rates(repeat, first, n_repeat, n_first)


def _check_vocabulary(codes: Codes, words: Tensor) -> None:
    if int(codes.tokens.max()) >= len(words):
        raise SaeError(f"{len(words)} words for tokens up to {int(codes.tokens.max())}: give latents.words(tokenizer)")


def widest_by_chance(
    codes: Codes, words: Bool[Tensor, " d_vocab"], n_shuffles: int = 50, seed: int = 0
) -> Float[Tensor, " shuffle"]:
    """The widest gap of any latent when it is shuffled which occurrences of a word are called repetitions.

    Some words return more often than others, and latents go by the word. So the shuffle stays within the occurrences
    of the same token: each word keeps its number of repetitions.

    Raises:
        SaeError: no word of the corpus is repeated in its context, or another vocabulary.
    """
    _check_vocabulary(codes, words)
    word = words[codes.tokens]
    word[:, 0] = False  # the start token is no word
    of, again = codes.tokens[word], repeated(codes.tokens)[word].float()
    if not 0 < again.sum() < len(again):
        raise SaeError("this corpus has no repeated words, or none that are new: take more contexts")
    fired = torch.zeros(len(of), codes.d_sae)
    fired.scatter_add_(1, codes.index[word].long(), (codes.values[word] > 0).float())
    generator, order = torch.Generator().manual_seed(seed), of.argsort()
    total, widest = fired.sum(0), torch.empty(n_shuffles)
    for number in range(n_shuffles):
        noise = torch.rand(len(of), generator=generator, dtype=torch.float64)
        mixed = torch.empty_like(again)
        mixed[order] = again[(of + noise).argsort()]
        at_repeats = mixed @ fired
        gap = at_repeats / mixed.sum() - (total - at_repeats) / (len(of) - mixed.sum())
        widest[number] = gap.max()
    return widest


def repeated(tokens: Int[Tensor, "context pos"]) -> Bool[Tensor, "context pos"]:
    """Whether each token stood earlier in its context; the start token does not count."""
    seen = torch.zeros_like(tokens, dtype=torch.bool)
    for position in range(2, tokens.shape[1]):
        seen[:, position] = (tokens[:, 1:position] == tokens[:, position, None]).any(1)
    return seen


def words(tokenizer: Any) -> Bool[Tensor, " d_vocab"]:
    """Which tokens are a word, or the beginning of one: at least four letters, with or without a space before them."""
    texts = [tokenizer.decode([i]) for i in range(len(tokenizer))]
    return torch.tensor([WORD.fullmatch(text) is not None for text in texts])


@contextmanager
def edited(model: TransformerBridge, sae: Any, change: Change) -> Iterator[None]:
    """Inside: at the output of the autoencoder's block, the code of every token is what `change` makes of it.

    Args:
        change: gets a copy of the codes [batch pos d_sae], which it may alter in place, and returns the new ones.

    Raises:
        SaeError: an autoencoder that does not fit the model, or codes of another shape.
    """

    def edit(h: Tensor, hook: Any) -> Tensor:
        code = encode(sae, h)
        new = change(code.clone())
        if new.shape != code.shape:
            raise SaeError(f"the changed codes have shape {tuple(new.shape)}, they need {tuple(code.shape)}")
        difference = new - code
        difference[:, 0] = 0.0
        return h + difference @ sae.W_dec

    with model.hooks(fwd_hooks=[(hook(_layer(model, sae, None)), edit)]):
        yield


@dataclass(frozen=True)
class Edits:
    """Many small edits, each to be made in a run of its own.

    Attributes:
        prompt: index of the prompt. position: where in it. delta: what is added to the residual stream there.
    """

    prompt: Int[Tensor, " run"]
    position: Int[Tensor, " run"]
    delta: Float[Tensor, "run d_model"]

    def __len__(self) -> int:
        return len(self.prompt)


def _followed(model: TransformerBridge, layer: int) -> int:
    if layer + 1 not in range(1, model.cfg.n_layers):
        raise SaeError(f"no block follows layer {layer} of {model.cfg.n_layers}: nothing could read the edit")
    return layer


class Editor:
    """Prompts on which many edits are made, each in a run of its own, without a whole forward pass for each.

    Only what an edit can change is computed, as in `labcode.forward`: later layers, from its position on.

    Args:
        layer: edits are made at the output of this block.

    Raises:
        SaeError: the last layer, or one that does not exist.
    """

    def __init__(self, model: TransformerBridge, pop: Population, layer: int) -> None:
        self.model, self.pop, self.layer = model, pop, _followed(model, layer)
        run = record(model, pop.tokens, pop.end, [*Suffix.hooks(model), "hook_attn_out"])
        self._base = logit_difference(run.logits, pop)
        self.suffix = Suffix.proven(Network(model), run, pop.end, pop.positions["S2"])

    @property
    def base(self) -> Float[Tensor, " batch"]:
        """The logit difference of each prompt, unchanged."""
        return self._base.cpu()

    @property
    def stream(self) -> Float[Tensor, "batch pos d_model"]:
        """The output of the block, unchanged: what an autoencoder reads there."""
        return self.suffix.base["hook_resid_pre", self.layer + 1].cpu()

    def at(self, layer: int) -> Editor:
        """The same runs, which need not be made again, for edits at the output of another block.

        Raises:
            SaeError: the last layer, or one that does not exist.
        """
        other = copy.copy(self)
        other.layer = _followed(self.model, layer)
        return other

    def first(self, n: int) -> Editor:
        """The same runs of the first prompts alone."""
        other, base = copy.copy(self), self.suffix.base
        other.pop, other._base = self.pop.subset(range(n)), self._base[:n]
        run = Run({name: values[:n] for name, values in base.activations.items()}, base.logits[:n])
        other.suffix = Suffix(self.suffix.network, run, other.pop.end)
        return other

    def values(self, edits: Edits, batch_size: int = 256) -> Float[Tensor, " run"]:
        """The logit difference of each run.

        Raises:
            SaeError: an edit at position 0.
        """
        if len(edits) and int(edits.position.min()) < 1:
            raise SaeError("an edit at position 0, the start token: the autoencoder has no code there")
        pop, widths = self.pop, self.pop.end[edits.prompt] - edits.position + 1
        values = torch.empty(len(edits))
        batches = [
            (chosen, int(width))
            for width in widths.unique()
            for chosen in (widths == width).nonzero()[:, 0].split(batch_size)
        ]
        with torch.no_grad():
            for chosen, width in progress(batches, "edits"):
                prompt = edits.prompt[chosen]
                x = self._final(prompt, width, edits.delta[chosen])
                values[chosen] = self.suffix.network.logit_difference(x, pop.io_ids[prompt], pop.s_ids[prompt])
        return values

    def change(self, at: str, delta: Float[Tensor, "batch d_model"]) -> Float[Tensor, " batch"]:
        """Change of each prompt's logit difference when its `delta` is added at a named position.

        Raises:
            SaeError: unknown position, or no vector for each prompt.
        """
        self._check_edit(delta)
        rows = torch.arange(len(self.pop))
        return self.values(Edits(rows, place(self.pop, at), delta)) - self._base

    def _check_edit(self, delta: Tensor) -> None:
        if not delta.is_floating_point() or delta.shape != (len(self.pop), self.suffix.network.d_model):
            raise SaeError(
                f"edits of {str(delta.dtype).removeprefix('torch.')} {tuple(delta.shape)} for {len(self.pop)} prompts: "
                "give a vector for each"
            )

    def heard(
        self, delta: Float[Tensor, "batch d_model"], readers: Sequence[Node], into: str, through_mlps: bool = True
    ) -> Float[Tensor, " batch"]:
        """Change of each prompt's logit difference when some heads alone hear that `delta` was added at S2.

        Path patching (Wang et al. 2022, appendix B; `edges.arrows`) with an edit of the stream as the sender: on its
        way no head writes anything new. What then arrives at S2 is read by the readers, all of them together, as
        queries, keys or values in an otherwise unchanged run, and everything after them runs free. Only the query at
        a reader's own position sees new keys and values, and only this head of those that share them.

        Args:
            readers: (layer, head, place) with the place S2 or END, in layers after the edit.
            into: "q", "k", "v", or several letters. Queries at END read nothing at S2: there "q" changes nothing.
            through_mlps: whether MLPs at S2 compute anew on the way; if not, only the vector itself arrives.

        Raises:
            SaeError: no readers, one that stands elsewhere or before the edit, or an unknown input.
        """
        if not into or set(into) - set("qkv"):
            raise SaeError(f"unknown input {into!r}: choose 'q', 'k', 'v' or several, as 'kv'")
        check_heads(self.model, [reader[:2] for reader in readers])
        for layer, head, at in readers:
            if layer <= self.layer or at not in ("S2", "END"):
                raise SaeError(
                    f"{layer}.{head} at {at} can't hear an edit at S2 after layer {self.layer}: give readers of later "
                    "layers, at S2 or END"
                )
        self._check_edit(delta)
        if not readers:
            raise SaeError("no readers: give at least one, as (layer, head, place)")
        values = torch.empty(len(self.pop))
        widths = self.pop.end - self.pop.positions["S2"] + 1
        with torch.no_grad():
            for width in widths.unique().tolist():
                prompt = (widths == width).nonzero()[:, 0]
                arrived = self._arrived(prompt, delta[prompt], through_mlps)
                x = self._told(prompt, width, arrived, readers, into)
                ids = self.pop.io_ids[prompt], self.pop.s_ids[prompt]
                values[prompt] = self.suffix.network.logit_difference(x, *ids)
        return values - self._base

    def _arrived(self, prompt: Tensor, delta: Tensor, through_mlps: bool) -> list[Tensor]:
        """What an edit makes of the stream at S2 before each layer, while heads write what they wrote."""
        base, network, s2 = self.suffix.base, self.suffix.network, self.pop.positions["S2"][prompt]
        before = [base["hook_resid_pre", number][prompt, s2] for number in range(network.n_layers)]
        if not through_mlps:
            return [x + delta if number > self.layer else x for number, x in enumerate(before)]
        x = before[self.layer + 1] + delta
        for number in range(self.layer + 1, network.n_layers):
            before[number] = x
            x = x + base["hook_attn_out", number][prompt, s2]
            x = x + network.mlp(number, x)
        return before

    def _told(
        self, prompt: Tensor, width: int, arrived: Sequence[Tensor], readers: Sequence[Node], into: str
    ) -> Tensor:
        """The last residual stream at END when readers read `arrived` at S2, [run d_model]."""
        suffix, network = self.suffix, self.suffix.network
        window, first = suffix.window(prompt, width), min(reader[0] for reader in readers)
        x = suffix.base["hook_resid_pre", first][prompt[:, None], window]
        for number in range(first, network.n_layers):
            inputs = suffix.inputs(number, x, window, end_only=False)
            z = network.attend(inputs[0], *suffix.seen(number, inputs, prompt, window))
            if here := [reader[1:] for reader in readers if reader[0] == number]:
                new = suffix.inputs(number, arrived[number][:, None], window[:, :1], end_only=False)
                for letter in into:
                    inputs["qkv".index(letter)][:, :1] = new["qkv".index(letter)]
                other = network.attend(inputs[0], *suffix.seen(number, inputs, prompt, window))
                for head, at in here:
                    z[:, 0 if at == "S2" else -1, head] = other[:, 0 if at == "S2" else -1, head]
            x = x + network.project(number, z)
            x = x + network.mlp(number, x)
        return x[:, -1]

    def _final(self, prompt: Tensor, width: int, delta: Tensor) -> Tensor:
        """The last residual stream at END, [run d_model]."""
        suffix, network = self.suffix, self.suffix.network
        window = suffix.window(prompt, width)
        x = suffix.base["hook_resid_pre", self.layer + 1][prompt[:, None], window]
        x[:, 0] += delta
        for number in range(self.layer + 1, network.n_layers):
            last = number == network.n_layers - 1
            attention = suffix.attention(number, x, prompt, window, end_only=last)
            x = x[:, -1:] + attention if last else x + attention
            x = x + network.mlp(number, x)
        return x[:, -1]


@dataclass(frozen=True)
class Ablation:
    """What taking single latents out of single tokens does.

    Attributes:
        latents: the latents, one column each. activation: how active each was, per prompt.
        change: change of the logit difference, per prompt; 0 where the latent was not active.
    """

    latents: list[int]
    activation: Float[Tensor, "batch latent"]
    change: Float[Tensor, "batch latent"]


def ablation(editor: Editor, sae: Any, at: str, chosen: Sequence[int] | None = None) -> Ablation:
    """Set one latent to 0 at one named position, for each latent by itself; the error term and all others stay.

    Args:
        at: a named position of the prompts. chosen: the latents; by default all that are active there in some prompt.

    Raises:
        SaeError: an unknown position, or no such latent.
    """
    pop = editor.pop
    code = at_position(editor.model, pop, sae, editor.layer, at)
    active = (code > 0).any(0).nonzero()[:, 0].tolist() if chosen is None else check_latents(sae, chosen)
    activation = code[:, active]
    prompt, column = (activation > 0).nonzero().T
    delta = -activation[prompt, column, None] * sae.W_dec[torch.tensor(active, dtype=torch.long)[column]]
    change = torch.zeros_like(activation)
    change[prompt, column] = editor.values(Edits(prompt, place(pop, at)[prompt], delta)) - editor._base[prompt]
    return Ablation(active, activation, change)


def at_position(
    model: TransformerBridge, pop: Population, sae: Any, layer: int, at: str
) -> Float[Tensor, "batch d_sae"]:
    """The code of each prompt at a named position.

    Raises:
        SaeError: unknown position.
    """
    where = place(pop, at)
    return codes(model, sae, pop.tokens, layer)[torch.arange(len(pop)), where]


def place(pop: Population, at: str) -> Int[Tensor, " batch"]:
    """Index of a named position in each prompt. Raises `SaeError` for an unknown one."""
    if at not in pop.positions:
        raise SaeError(f"unknown position {at!r}: choose among {', '.join(pop.positions)}")
    return pop.positions[at]


guard(globals(), SaeError)
