"""Chapter 08: taking away what a head looks at, the copy score of an OV circuit, and that circuit by hand."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from labbook.checks.exercise import Exercise, Mistake, Setting
from labcode import heads, metrics
from labcode.heads import Head


def _blind(
    model: Any,
    pop: Any,
    head: Head,
    places: Sequence[str],
    names: Tensor,
    *,
    how: str = "zero",
    every_query: bool = False,
    every_head: bool = False,
    turned: bool = False,
) -> Tensor:
    """[2 batch]: logits of IO and S at END against the mean name, one head blind to some places."""
    rows, (layer, index) = torch.arange(len(pop)), head

    def hide(pattern: Tensor, hook: Any) -> Tensor:
        pattern = pattern.clone()  # [batch head query key]
        for place in places:
            key = pop.positions[place]
            at: tuple[Any, ...] = (rows, slice(None) if every_head else index, pop.end, key)
            if every_query:
                at = (rows, index, slice(None), key)
            if turned:
                at = (rows, index, key, pop.end)
            pattern[at] = 0
        if how == "share":
            seen = pattern[rows, index, pop.end]
            pattern[rows, index, pop.end] = seen / seen.sum(-1, keepdim=True).clamp(min=1e-9)
        return pattern

    with model.hooks(fwd_hooks=[(f"blocks.{layer}.attn.hook_pattern", hide)]):
        logits = metrics.end_logits(model, pop)
    zero = logits[:, names].mean(-1)
    return torch.stack([logits[rows, pop.io_ids] - zero, logits[rows, pop.s_ids] - zero])


def _lookers(setting: Setting) -> list[tuple[Any, ...]]:
    """The head of the reader's model that looks most at IO from END, with layers below and above it."""
    from labcode import prompts

    model, pop = setting.model, setting.pop.subset([0, 1, len(setting.pop) - 2])

    def most() -> Head:
        look = heads.position_attention(model, pop, "END", "IO")[1:-1]
        layer, head = divmod(int(look.mean(-1).argmax()), model.cfg.n_heads)
        return layer + 1, head

    known, _ = prompts.single_token_names(model)
    names = torch.tensor([prompts.token_id(model, " " + name) for name in known])
    return [(model, pop, setting.once("07 most", most), ["IO", "S2"], names)]


def _shares(setting: Setting) -> list[tuple[Any, ...]]:
    """Pushes in which the first head copies some of its names, just in or just out of the first five."""
    cases = []
    for seed, (n_heads, n_names) in enumerate([(3, 8), (2, 12)]):
        pushes = setting.random(n_heads, n_names, 40, seed=seed)
        ids = torch.arange(n_names) * 3 + 1
        for name, token in enumerate(ids.tolist()):
            order = pushes[0, name].argsort(descending=True)
            place = order[3 + name % 4]  # places 3 to 6
            pushes[0, name, [token, int(place)]] = pushes[0, name, [int(place), token]]
        cases.append((pushes, ids))
    return cases


def _places(pushes: Tensor, ids: Tensor) -> Tensor:
    own = pushes.gather(-1, ids[None, :, None].expand(len(pushes), -1, 1))
    return (pushes > own).sum(-1)


def _copied(pushes: Tensor, ids: Tensor) -> Tensor:
    return (_places(pushes, ids) < 5).float().mean(-1)


def _pushes(
    model: Any,
    layer: int,
    ids: Tensor,
    *,
    block: str = "first",
    final: bool = True,
    groups: str = "in turn",
) -> Tensor:
    """[head name d_vocab]: what each head of a layer would write on reading a name, or with one thing wrong."""
    stream = model.W_E[ids] if block == "none" else _stream(model, ids, 0 if block == "first" else layer - 1)
    attention, n_heads = model.blocks[layer].attn, model.cfg.n_heads
    values = attention.W_V
    if len(values) != n_heads:
        group = n_heads // len(values)
        values = values.repeat_interleave(group, 0) if groups == "in turn" else values.repeat(group, 1, 1)
    with torch.no_grad():
        read = model.blocks[layer].ln1(stream[:, None])[:, 0]
        written = torch.einsum("nm,hmd,hdo->hno", read, values, attention.W_O)
        if final:
            written = model.ln_final(written)
        return written @ model.W_U


def _stream(model: Any, ids: Tensor, layer: int) -> Tensor:
    """[name d_model]: the stream after a layer at the name, behind the start token."""
    hook = f"blocks.{layer}.hook_resid_post"
    tokens = torch.stack([torch.full_like(ids, model.tokenizer.bos_token_id), ids], dim=1)
    _, cache = model.run_with_cache(tokens, names_filter=hook, stop_at_layer=layer + 1)
    return cache[hook][:, 1]


def _circuits(setting: Setting) -> list[tuple[Any, ...]]:
    n_layers = setting.model.cfg.n_layers
    ids = torch.cat([setting.pop.io_ids, setting.pop.s_ids]).unique()[:3]
    return [(setting.model, layer, ids) for layer in (n_layers // 2, n_layers - 1)]


EXERCISES = [
    Exercise(
        number="08.1",
        what="logits of IO and of S against the mean name",
        dims="2 batch",
        near=0.0001,
        takes=("model", "pop", "head", "places", "name_ids"),
        cases=_lookers,
        right=_blind,
        says="One look of one head was taken away and all else left. What then happens to a name is caused by that "
        "look, through whatever it reaches.",
        mistakes=[
            Mistake(
                gives=partial(_blind, how="share"),
                says="You let the head share its attention out again, so that it sums to 1. Then it looks harder at "
                "everything else; asked is only to take a look away.",
            ),
            Mistake(
                gives=partial(_blind, every_query=True),
                says="You blind the head at all positions. The look from END alone was to be taken away: index the "
                "query with pop.end.",
            ),
            Mistake(
                gives=partial(_blind, turned=True),
                says="The head still sees everything: these are the logits of a plain run. The pattern is [batch head "
                "query key]; turned round, you hide END from the names, which can't see it anyway. Or your hook is at "
                "another layer.",
            ),
            Mistake(
                gives=partial(_blind, every_head=True),
                says="You blind all heads of the layer. The second axis of the pattern is the head: index it.",
            ),
        ],
    ),
    Exercise(
        number="08.2",
        what="a copy score for each head",
        dims="head",
        takes=("pushes", "ids"),
        cases=_shares,
        right=_copied,
        says="A rank counts the tokens ahead. The score is a share of names, so it is the same for a large and a small "
        "push: it says what comes first, not how strongly.",
        needs_model=False,
        mistakes=[
            Mistake(
                gives=lambda pushes, ids: (_places(pushes, ids) <= 5).float().mean(-1),
                says="You take six places. Counted from 0 the first five are those below 5; counted from 1 they go up "
                "to 5.",
            ),
            Mistake(
                gives=lambda pushes, ids: (_places(pushes, ids) < 4).float().mean(-1),
                says="You take four places: the rank is counted from 1, and then 5 belongs to the first five.",
            ),
            Mistake(
                gives=lambda pushes, ids: _copied(-pushes, ids),
                says="These are the names among the five that a head lowers most: the negated copy score.",
            ),
            Mistake(
                gives=lambda pushes, ids: (_places(pushes.softmax(1), ids) < 5).float().mean(-1),
                says="You took the softmax over the names instead of the tokens. Each token is then compared with "
                "itself in other rows. Ranks need no softmax at all.",
            ),
        ],
    ),
    Exercise(
        number="08.3",
        what="what each head adds to each logit",
        dims="head name d_vocab",
        takes=("model", "layer", "ids"),
        cases=_circuits,
        right=_pushes,
        says="First block, norm, values, output, final norm, unembedding, and no sentence. Forget the first, and "
        "numbers come out all the same.",
        mistakes=[
            Mistake(
                gives=partial(_pushes, block="none"),
                says="You feed the circuit with bare embeddings, so you have broken it already: the first block is "
                "missing. Read the stream after it, at the name, behind the start token.",
            ),
            Mistake(
                gives=partial(_pushes, final=False),
                says="The final norm is missing: what a head writes goes through model.ln_final before the "
                "unembedding.",
            ),
            Mistake(
                gives=partial(_pushes, groups="round"),
                says="Heads and values are paired wrongly. Neighbouring heads share one set of values, so each set is "
                "repeated in its place: repeat_interleave, not repeat.",
            ),
            Mistake(
                gives=partial(_pushes, block="own"),
                says="You feed each layer with the stream before itself. That is a fair question too; the copy score "
                "feeds every layer with the stream after the first block.",
            ),
        ],
    ),
]
