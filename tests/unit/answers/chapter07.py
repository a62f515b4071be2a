"""Answers to the exercises of chapter 07: right ones, written differently, and wrong ones with words of the reply."""

from __future__ import annotations

import torch

from labcode import metrics


def relative(logits, pop, names):
    zero = logits[:, names].mean(-1)
    return torch.stack([logits[range(len(pop)), ids] - zero for ids in (pop.io_ids, pop.s_ids)])


def by_pattern(model, pop, head, places, name_ids, edit=None, judge=relative):
    layer, index = head
    rows = torch.arange(len(pop))

    def hide(pattern, hook):
        pattern = pattern.clone()
        for place in places:
            if edit:
                edit(pattern, rows, index, pop, pop.positions[place])
            else:
                pattern[rows, index, pop.end, pop.positions[place]] = 0
        return pattern

    with model.hooks(fwd_hooks=[(f"blocks.{layer}.attn.hook_pattern", hide)]):
        logits = metrics.end_logits(model, pop)
    return judge(logits, pop, name_ids)


def by_z(model, pop, head, places, name_ids):
    """What the look brings is its weight times the value there: take that away from z at END, prompt by prompt."""
    layer, index = head
    columns = []
    for row in range(len(pop)):
        one = pop.subset([row])
        _, cache = model.run_with_cache(one.tokens)
        v = cache[f"blocks.{layer}.attn.hook_v"]
        weights = cache[f"blocks.{layer}.attn.hook_pattern"][0, index, -1]
        shared = index * v.shape[2] // model.cfg.n_heads
        brought = sum(weights[one.positions[place][0]] * v[0, one.positions[place][0], shared] for place in places)

        def take(z, hook, brought=brought):
            z = z.clone()
            z[0, -1, index] -= brought
            return z

        last = model.run_with_hooks(one.tokens, fwd_hooks=[(f"blocks.{layer}.attn.hook_z", take)])[0, -1]
        zero = last[name_ids].mean()
        columns.append(torch.stack([last[one.io_ids[0]] - zero, last[one.s_ids[0]] - zero]))
    return torch.stack(columns, dim=1)


def shared_out(model, pop, head, places, name_ids):
    rows = torch.arange(len(pop))

    def hide(pattern, hook):
        pattern = pattern.clone()
        for place in places:
            pattern[rows, head[1], pop.end, pop.positions[place]] = 0
        seen = pattern[rows, head[1], pop.end]
        pattern[rows, head[1], pop.end] = torch.where(
            seen.sum(-1, keepdim=True) > 1e-9, seen / seen.sum(-1, keepdim=True), 0
        )
        return pattern

    with model.hooks(fwd_hooks=[(f"blocks.{head[0]}.attn.hook_pattern", hide)]):
        return relative(metrics.end_logits(model, pop), pop, name_ids)


def every_query(pattern, rows, index, pop, key):
    for row in rows:
        pattern[row, index, :, key[row]] = 0


def turned(pattern, rows, index, pop, key):
    pattern[rows, index, key, pop.end] = 0


def every_head(pattern, rows, index, pop, key):
    pattern[rows, :, pop.end, key] = 0


def last_column(pattern, rows, index, pop, key):
    pattern[rows, index, -1, key] = 0


def against_tokens(logits, pop, names):
    return relative(logits, pop, torch.arange(logits.shape[1]))


def bare(logits, pop, names):
    return logits.gather(1, torch.stack([pop.io_ids, pop.s_ids], 1)).T


def plain(model, pop, head, places, name_ids):
    return relative(metrics.end_logits(model, pop), pop, name_ids)


def by_sorting(pushes, ids, first=0, k=5):
    order = pushes.argsort(-1, descending=True).tolist()
    return [
        sum(row.index(token) + first < k for row, token in zip(head, ids.tolist(), strict=True)) / len(ids)
        for head in order
    ]


def by_top(pushes, ids, k=5):
    return (pushes.topk(k).indices == ids[None, :, None]).any(-1).float().mean(-1)


def first_stream(model, ids, at=1):
    tokens = torch.tensor([[model.tokenizer.bos_token_id, token] for token in ids.tolist()])
    _, cache = model.run_with_cache(tokens)
    return cache["blocks.0.hook_resid_post"][:, at]


def own_stream(model, layer, ids):
    bos = model.tokenizer.bos_token_id
    runs = [model.run_with_cache(torch.tensor([[bos, token]]))[1] for token in ids.tolist()]
    return torch.cat([cache[f"blocks.{layer}.hook_resid_pre"][:, 1] for cache in runs])


def by_head(model, layer, ids, stream=None, after=True, pair=None):
    attention = model.blocks[layer].attn
    stream = first_stream(model, ids) if stream is None else stream
    read = model.blocks[layer].ln1(stream[:, None])[:, 0]
    group = model.cfg.n_heads // len(attention.W_V)
    rows = []
    for head in range(model.cfg.n_heads):
        value = attention.W_V[pair(head, len(attention.W_V)) if pair else head // group]
        written = read @ (value @ attention.W_O[head])
        rows.append((model.ln_final(written[:, None])[:, 0] if after else written) @ model.W_U)
    return torch.stack(rows)


def by_hooks(model, layer, ids):
    """The model itself does the sums: the layer gets the stream, and the head's attention rests on the name alone."""
    tokens = torch.tensor([[model.tokenizer.bos_token_id, token] for token in ids.tolist()])
    stream = first_stream(model, ids)
    read = {}

    def feed(resid, hook):
        resid = resid.clone()
        resid[:, 1] = stream
        return resid

    def keep(v, hook):
        read["v"] = v[:, 1]  # [name head d_head]

    model.run_with_hooks(
        tokens, fwd_hooks=[(f"blocks.{layer}.hook_resid_pre", feed), (f"blocks.{layer}.attn.hook_v", keep)]
    )
    attention = model.blocks[layer].attn
    v = read["v"].repeat_interleave(model.cfg.n_heads // read["v"].shape[1], 1)
    return model.ln_final(torch.einsum("nhd,hdo->hno", v, attention.W_O)) @ model.W_U


RIGHT = {
    "07.1": [by_pattern, by_z],
    "07.2": [by_sorting, by_top],
    "07.3": [by_head, by_hooks],
}
WRONG = {
    "07.1": [
        (shared_out, "share its attention out again"),
        (lambda *args: by_pattern(*args, edit=every_query), "at all positions"),
        (lambda *args: by_pattern(*args, edit=turned), "turned round"),
        (lambda *args: by_pattern(*args, edit=every_head), "all heads of the layer"),
        (lambda *args: by_pattern(*args, edit=last_column), "the last column"),
        (lambda *args: by_pattern(*args, judge=against_tokens), "mean of all tokens"),
        (lambda *args: by_pattern(*args, judge=bare), "or with nothing"),
        (plain, "still sees everything"),
        (lambda *args: by_pattern(*args) - plain(*args), "no mistake that this check knows"),
        (lambda *args: by_pattern(*args).T, "shape"),
    ],
    "07.2": [
        (lambda pushes, ids: by_sorting(pushes, ids, k=6), "You take six places"),
        (lambda pushes, ids: by_sorting(pushes, ids, first=1), "You take four places"),
        (lambda pushes, ids: by_top(-pushes, ids), "lowers most"),
        (lambda pushes, ids: by_top(pushes.softmax(dim=1), ids), "over the names instead"),
        (lambda pushes, ids: by_top(pushes.abs(), ids), "rank by size"),
        (lambda pushes, ids: by_top(pushes, ids) * len(ids), "a number of names"),
        (lambda pushes, ids: by_top(pushes, ids).mean(), "shape"),
        (lambda pushes, ids: by_top(pushes, ids, k=1), "no mistake that this check knows"),
    ],
    "07.3": [
        (lambda model, layer, ids: by_head(model, layer, ids, model.W_E[ids]), "bare embeddings"),
        (lambda model, layer, ids: by_head(model, layer, ids, own_stream(model, layer, ids)), "before itself"),
        (lambda *args: by_head(*args, after=False), "final norm is missing"),
        (lambda *args: by_head(*args, pair=lambda head, n: head % n), "paired wrongly"),
        (
            lambda model, layer, ids: by_head(model, layer, ids, first_stream(model, ids, at=0)),
            "at the start token",
        ),
        (lambda *args: -by_head(*args), "no mistake that this check knows"),
        (lambda *args: by_head(*args)[0], "shape"),
    ],
}
