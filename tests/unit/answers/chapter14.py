"""Answers to the exercises of chapter 14: right ones, written differently, and wrong ones with words of the reply."""

from __future__ import annotations

import torch

from labcode.sae import cross_entropy


def above_the_cut(codes, n):
    cut = codes.topk(n).values[:, -1:]
    return torch.where(codes >= cut, codes, 0.0)


def row_by_row(codes, n):
    kept = []
    for code in codes.tolist():
        places = sorted(range(len(code)), key=lambda i: -code[i])[:n]
        kept.append([value if i in places else 0.0 for i, value in enumerate(code)])
    return kept


def by_column(codes, n):
    return above_the_cut(codes.T, n).T


def fixed(codes, n):
    mask = torch.zeros(codes.shape[1])
    mask[codes.sum(0).argsort(descending=True)[:n]] = 1
    return codes * mask


def least(codes, n):
    kept = []
    for code in codes.tolist():
        places = sorted((i for i in range(len(code)) if code[i] > 0), key=lambda i: code[i])[:n]
        kept.append([value if i in places else 0.0 for i, value in enumerate(code)])
    return kept


def one_too_few(codes, n):
    return codes * (codes > codes.sort(descending=True).values[:, n - 1 : n])


def run(model, tokens, layer, rebuild, first=1):
    """With a context manager and a hook on the next layer's input, where there is one."""

    def put(h, hook):
        return torch.cat([h[:, :first], rebuild(h[:, first:])], dim=1)

    with model.hooks(fwd_hooks=[(f"blocks.{layer + 1}.hook_in", put)]):
        return model(tokens)


def with_loss(model, tokens, layer, rebuild):
    logits = run(model, tokens, layer, rebuild)[:, 1:-1]
    found = torch.nn.functional.cross_entropy(logits.transpose(1, 2), tokens[:, 2:], reduction="none")
    return found.mean(1)


def by_position(model, tokens, layer, rebuild):
    p = run(model, tokens, layer, rebuild).softmax(-1)
    contexts, length = tokens.shape
    return [
        -sum(float(p[c, at, tokens[c, at + 1]].log()) for at in range(1, length - 1)) / (length - 2)
        for c in range(contexts)
    ]


def log_p(model, tokens, layer, rebuild):
    return run(model, tokens, layer, rebuild).log_softmax(-1)


def without_return(model, tokens, layer, rebuild):
    def splice(h, hook):
        h = h.clone()
        h[:, 1:] = rebuild(h[:, 1:])

    return cross_entropy(model.run_with_hooks(tokens, fwd_hooks=[(f"blocks.{layer}.hook_out", splice)]), tokens)


def from_the_start(*case):
    return -log_p(*case)[:, :-1].gather(-1, case[1][:, 1:, None]).mean((1, 2))


def own_token(*case):
    return -log_p(*case)[:, 1:].gather(-1, case[1][:, 1:, None]).mean((1, 2))


def one_layer_early(model, tokens, layer, rebuild):
    def put(h, hook):
        return torch.cat([h[:, :1], rebuild(h[:, 1:])], dim=1)

    logits = model.run_with_hooks(tokens, fwd_hooks=[(f"blocks.{layer}.hook_in", put)])
    return cross_entropy(logits, tokens)


def judge(x, rebuilt, clean, spliced, floor, **other):
    """With torch's variance, and the loss as a part that was lost."""
    left = (x - rebuilt).square().mean(0).sum() / x.var(0, correction=0).sum()
    lost = (spliced - clean).mean() / (floor - clean).mean()
    return {"explained": 1 - left, "recovered": 1 - lost} | other


def judge_in_loops(x, rebuilt, clean, spliced, floor):
    middle = sum(x) / len(x)
    error = sum(float((a - b) @ (a - b)) for a, b in zip(x, rebuilt, strict=True))
    total = sum(float((a - middle) @ (a - middle)) for a in x)
    way = sum(floor.tolist()) - sum(clean.tolist())
    return {"explained": 1 - error / total, "recovered": (sum(floor.tolist()) - sum(spliced.tolist())) / way}


def share(x, rebuilt, middle):
    return float(1 - (x - rebuilt).norm() ** 2 / (x - middle).norm() ** 2)


def changed(key, make):
    return lambda *case: judge(*case, **{key: make(*case)})


RIGHT = {
    "14.1": [above_the_cut, row_by_row],
    "14.2": [with_loss, by_position],
    "14.3": [judge, judge_in_loops],
}
WRONG = {
    "14.1": [
        (by_column, "along the last dimension"),
        (fixed, "the same latents for all samples"),
        (least, "the smallest entries"),
        (one_too_few, "one entry too few"),
        (lambda codes, n: (above_the_cut(codes, n) > 0).int(), "put 1 there"),
        (lambda codes, n: codes.topk(n).values, "expected codes with n entries each"),
        (lambda codes, n: codes, "no mistake that this check knows"),
    ],
    "14.2": [
        (lambda *case: cross_entropy(run(*case, first=0), case[1]), "Position 0 is replaced too"),
        (without_return, "the model as it is"),
        (from_the_start, "the prediction at position 0"),
        (own_token, "on its own token"),
        (lambda *case: with_loss(*case) * (case[1].shape[1] - 2), "add up over positions"),
        (one_layer_early, "what goes into this layer"),
        (lambda *case: with_loss(*case) / torch.log(torch.tensor(2.0)), "no mistake that this check knows"),
    ],
    "14.3": [
        (changed("explained", lambda x, r, *_: share(x, r, 0)), "by the squared lengths"),
        (changed("explained", lambda x, r, *_: share(x, r, x.mean(1)[:, None])), "the coordinates of each vector"),
        (
            changed(
                "explained",
                lambda x, r, *_: sum(share(a, b, x.mean(0)) for a, b in zip(x, r, strict=True)) / len(x),
            ),
            "the ratio for each vector",
        ),
        (changed("explained", lambda x, r, *_: 1 - share(x, r, x.mean(0))), "the part that is left over"),
        (
            changed("recovered", lambda x, r, clean, spliced, floor: (clean - spliced).mean() / (clean - floor).mean()),
            "have changed places",
        ),
        (
            changed("recovered", lambda x, r, clean, spliced, floor: (1 - (spliced - clean) / (floor - clean)).mean()),
            "the part for each context",
        ),
        (
            changed("recovered", lambda x, r, clean, spliced, floor: clean.sum() / spliced.sum()),
            "the ratio of two losses",
        ),
        (changed("recovered", lambda x, r, clean, spliced, floor: 0.5), "no mistake that this check knows"),
    ],
}
