"""What a reader may give by mistake: the answer is an error of the lab's own that says what was wrong, or none."""

from __future__ import annotations

import copy
import gc
import inspect
import weakref
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from labcode import (
    attribution,
    circuit,
    corpus,
    edges,
    evidence,
    faithful,
    families,
    frames,
    heads,
    inputs,
    joint,
    latents,
    metrics,
    models,
    patching,
    plots,
    prompts,
    readable,
    recorded,
    report,
    residual,
    sae,
    superposition,
    tasks,
    toy,
    transcoder,
    variants,
)
from labcode.circuit import Keep, Out
from labcode.errors import (
    EvidenceError,
    FamilyError,
    HeadError,
    LabError,
    MetricError,
    ModelError,
    PatchError,
    PromptError,
    ReportError,
    SaeError,
)
from labcode.prompts import CANONICAL, Population, Prompt

NAN, INF = float("nan"), float("inf")
HUGE = 10**5_000  # Python refuses to write its digits
NODE = (1, 0, "END")
TEXT = "When John and Mary went to the store, John gave a drink to"
SENTENCE = {"text": TEXT, "io": "Mary", "s": "John", "order": "BABA"}


def contexts(n=4, length=12):
    text = torch.randint(3, 5000, (n, length), generator=torch.Generator().manual_seed(0))
    text[:, 0] = 1
    return text


@pytest.fixture(scope="module")
def lab(tiny_llama):
    """A tiny model, prompts, and one of everything that is made of them."""
    model = tiny_llama.bridge
    pop = prompts.population(model, 8, seed=1, exact=True)
    other = prompts.corrupt(model, pop, "abc")
    same = pop.subset([i for i in range(8) if pop.lengths[i] == pop.lengths[0]])
    text = contexts()
    acts = sae.collect(model, text, 1)
    small = sae.train(acts, d_sae=24, k=4, samples=80, batch=20).sae
    pairs = transcoder.collect(model, text, 1)
    coder = transcoder.train(pairs, d_sae=24, k=4, samples=80, batch=20).transcoder
    grid = patching.sweep(model, pop, other, "z", at="END", layers=[1])
    words = readable.Text(text, str)
    logits = metrics.end_logits(model, pop)
    values, groups = torch.arange(8.0), torch.arange(8) // 2
    reference = circuit.references(model, pop)
    half = copy.deepcopy(model).bfloat16()
    long = torch.cat([text] * 11, dim=1)  # 132 tokens, and the model reads 128
    pages = replace(pop, tokens=torch.cat([pop.tokens] * 20, dim=1))
    foreign, alike = replace(pop, tokenizer="another"), replace(grid, draws=torch.zeros(8).long())
    return SimpleNamespace(
        **{name: value for name, value in locals().items() if name != "tiny_llama"},
        runner=circuit.Runner(model, pop, reference),
        joint=(together := joint.Joint(model, pop)),
        run=together.source(other),
        editor=latents.Editor(model, pop, 1),
        graph=edges.Graph(model),
        codes=latents.scan(model, small, text),
        parts=residual.decompose(model, pop),
        fires=contexts() % 2 == 0,
    )


# What must be said: (call, error, phrase)

HEADS = {
    "(1.0, 1)": ((1.0, 1), "1.0 is no whole number"),
    "(True, 1)": ((True, 1), "True is a truth value, and a whole number is asked for"),
    "a row of floats": (torch.tensor([1.0, 1.0]), "1.0 is no whole number"),
    "(-1, 0)": ((-1, 0), "no head -1.0: this model has 3 layers"),
    "(99, 0)": ((99, 0), "no head 99.0"),
    "(0, 99)": ((0, 99), "no head 0.99"),
    "1.1": ("1.1", "a head is (layer, head)"),
    "(1,)": ((1,), "a head is (layer, head)"),
    "a set": ({2, 1}, "a set: a head is (layer, head)"),
    "a dictionary's keys": ({2: 1, 1: 2}.keys(), "a head is (layer, head)"),
}
TAKES_HEADS = {
    "check_heads": lambda lab, head: heads.check_heads(lab.model, [head]),
    "ablate": lambda lab, head: circuit.ablate(lab.model, lab.pop, [head]),
    "ablate_each": lambda lab, head: circuit.ablate_each(lab.model, lab.pop, [head]),
    "exchange": lambda lab, head: patching.exchange(lab.model, lab.pop, lab.other, [head]),
    "sweep": lambda lab, head: patching.sweep(lab.model, lab.pop, lab.other, "z", only=[head]),
    "path_patch": lambda lab, head: patching.path_patch(lab.model, lab.pop, lab.other, "q", [head]),
    "joint": lambda lab, head: lab.joint.run(lab.run, [[head]]),
    "joint, watched": lambda lab, head: lab.joint.run(lab.run, [[(2, 0)]], watch=[head]),
    "same_layer_heads": lambda lab, head: heads.same_layer_heads(lab.model, [head]),
    "same_layer_heads, excluded": lambda lab, head: heads.same_layer_heads(lab.model, [(1, 0)], [head]),
    "composition": lambda lab, head: edges.composition(lab.model, head, (2, 0), "q"),
    "families.measure": lambda lab, head: families.measure(lab.model, lab.pop, lab.other, [head]),
}
NODES = {
    "(1.0, 1)": ((1.0, 1, "END"), HeadError, "1.0 is no whole number"),
    "(True, 1)": ((True, 1, "END"), HeadError, "True is a truth value"),
    "(-1, 0)": ((-1, 0, "END"), HeadError, "no head -1.0"),
    "(99, 0)": ((99, 0, "END"), HeadError, "no head 99.0"),
    "a head": ((1, 1), HeadError, "a node is (layer, head, position)"),
    "nowhere": ((1, 1, "S3"), PatchError, "1.1 at 'S3': no such position"),
}
TAKES_NODES = {
    "Keep": lambda lab, node: lab.runner.values([Keep([node])]),
    "Out": lambda lab, node: lab.runner.values([Out([node])]),
    "arrows": lambda lab, node: edges.arrows(lab.model, lab.pop, lab.other, {"a": [node]}, {}),
    "faithfulness": lambda lab, node: faithful.faithfulness(lab.runner, {"a": [node]}),
    "greedy": lambda lab, node: faithful.greedy(lab.runner, [node]),
}
BAD = [
    (f"{name}: {how}", partial(call, head=one), HeadError, said)
    for name, call in TAKES_HEADS.items()
    for how, (one, said) in HEADS.items()
]
BAD += [
    (f"{name}: {how}", partial(call, node=one), error, said)
    for name, call in TAKES_NODES.items()
    for how, (one, error, said) in NODES.items()
]

INDICES = {
    "-1": (-1, "-1: "),
    "99": (99, "99: "),
    "1.0": (1.0, "1.0 is no whole number"),
    "True": (True, "True is a truth value"),
    "NumPy's 1.0": (np.float64(1), "1.0 is no whole number"),
}
TAKES_INDICES = {
    "subset": (PromptError, lambda lab, i: lab.pop.subset([i])),
    "sweep, layers": (PatchError, lambda lab, i: patching.sweep(lab.model, lab.pop, lab.other, "z", layers=[i])),
    "sweep, heads": (PatchError, lambda lab, i: patching.sweep(lab.model, lab.pop, lab.other, "z", heads=[i])),
    "collect": (SaeError, lambda lab, i: sae.collect(lab.model, lab.text, i)),
    "transcoder.collect": (SaeError, lambda lab, i: transcoder.collect(lab.model, lab.text, i)),
    "Editor": (SaeError, lambda lab, i: latents.Editor(lab.model, lab.pop, i)),
    "codes": (SaeError, lambda lab, i: latents.codes(lab.model, lab.small, lab.text, i)),
    "check_fits": (SaeError, lambda lab, i: sae.check_fits(lab.small, lab.model, i)),
    "Codes.of": (SaeError, lambda lab, i: lab.codes.of(i)),
    "neighbours": (SaeError, lambda lab, i: latents.neighbours(lab.small, i)),
    "promoted": (SaeError, lambda lab, i: latents.promoted(lab.model, lab.small, i)),
    "ablation": (SaeError, lambda lab, i: latents.ablation(lab.editor, lab.small, "S2", [i])),
    "Local": (SaeError, lambda lab, i: attribution.Local(lab.model, lab.pop, lab.other, lab.small, 1, [i], {})),
    "label": (PatchError, lambda lab, i: lab.grid.label(i)),
}
BAD += [
    (f"{name}: {how}", partial(call, i=one), error, said)
    for name, (error, call) in TAKES_INDICES.items()
    for how, (one, said) in INDICES.items()
]


def built(lab, **more):
    return prompts.build(lab.model, [Prompt(**SENTENCE | more)])


def drawn(lab, *templates, **more):
    return prompts.population(lab.model, 2, templates=templates, exact=True, **more)


def minimal(lab, **more):
    return faithful.minimality_test(lab.runner, [NODE], **more)


def rated(lab, **more):
    return metrics.bootstrap_ratios(lab.values[None], lab.values, **more)


def swept(lab, *args, **more):
    return patching.sweep(lab.model, lab.pop, lab.other, *args, **more)


JOHN = "When John and Mary went to the store,"
BAD += [
    # Populations
    ("a mask", lambda lab: lab.pop.subset(lab.values > 3), PromptError, "is a mask, and numbers are asked for"),
    ("a list of truth values", lambda lab: lab.pop.subset([True] * 8), PromptError, "True is a truth value"),
    ("no prompt", lambda lab: lab.pop.subset([]), PromptError, "empty population"),
    ("used up", lambda lab: lab.pop.subset(iter(())), PromptError, "empty population"),
    ("used up, built", lambda lab: prompts.build(lab.model, iter(())), PromptError, "empty population"),
    ("one prompt", lambda lab: prompts.build(lab.model, Prompt(**SENTENCE)), PromptError, "Prompt is no list"),
    ("a text for a list", lambda lab: prompts.build(lab.model, TEXT), PromptError, "one text, and a list is asked for"),
    ("texts", lambda lab: prompts.build(lab.model, [TEXT]), PromptError, "is no prompts.Prompt"),
    ("answer at END", lambda lab: built(lab, text="When John and John met Mary"), PromptError, "ends with a name"),
    ("S2 at END", lambda lab: built(lab, text=f"{JOHN} said John"), PromptError, "ends with a name"),
    (
        "S twice in a row",
        lambda lab: built(lab, text="When John John and Mary went to", order="BABA"),
        PromptError,
        "twice in a row",
    ),
    (
        "IO last",
        lambda lab: built(lab, text="When John went, John gave Mary a drink to"),
        PromptError,
        "IO has to stand before S2",
    ),
    ("another order", lambda lab: built(lab, order="ABBA"), PromptError, "stand in order 'BABA'"),
    ("no order", lambda lab: built(lab, order="AB"), PromptError, "says of itself 'AB'"),
    (
        "S once",
        lambda lab: built(lab, text=f"{JOHN} Bob gave a drink to"),
        PromptError,
        "IO has to occur once and S twice",
    ),
    (
        "a name of several tokens",
        lambda lab: built(lab, io="Bartholomew"),
        PromptError,
        "the logit difference needs one known token",
    ),
    ("a name that is a number", lambda lab: built(lab, io=3), PromptError, "3 is no text"),
    ("a draw of 1.0", lambda lab: built(lab, draw=1.0), PromptError, "1.0 is no whole number"),
    ("another tokenizer", lambda lab: metrics.end_logits(lab.model, lab.foreign), MetricError, "another tokenizer"),
    (
        "another tokenizer, swept",
        lambda lab: patching.sweep(lab.model, lab.foreign, lab.foreign, "z"),
        PatchError,
        "another tokenizer",
    ),
    (
        "another tokenizer, a circuit",
        lambda lab: circuit.Runner(lab.model, lab.foreign, None, how="zero"),
        PatchError,
        "another tokenizer",
    ),
    (
        "a stray brace",
        lambda lab: drawn(lab, "When {A} and {B} went, {S} gave a { to"),
        PromptError,
        "can't be filled in",
    ),
    (
        "a lone brace",
        lambda lab: drawn(lab, "When {A} and {B} went, {S} gave a } to"),
        PromptError,
        "can't be filled in",
    ),
    (
        "an unknown field",
        lambda lab: drawn(lab, "When {A} and {B} met {C}, {S} gave a drink to"),
        PromptError,
        "once each",
    ),
    (
        "a field without a name",
        lambda lab: drawn(lab, "When {A} and {B} met {}, {S} gave a drink to"),
        PromptError,
        "once each",
    ),
    (
        "a field with a format",
        lambda lab: drawn(lab, "When {A:>9} and {B} met, {S} gave a drink to"),
        PromptError,
        "once each",
    ),
    ("no S", lambda lab: drawn(lab, "When {A} and {B} met, he gave a drink to"), PromptError, "once each"),
    ("S twice", lambda lab: drawn(lab, "When {A} and {B} met, {S} told {S} to"), PromptError, "once each"),
    (
        "a template for templates",
        lambda lab: prompts.population(lab.model, 2, templates=CANONICAL),
        PromptError,
        "one text, and a list is asked for",
    ),
    ("no templates", lambda lab: drawn(lab), PromptError, "at most 0 distinct prompts"),
    (
        "names in one text",
        lambda lab: drawn(lab, CANONICAL, names="John"),
        PromptError,
        "one text, and a list is asked for",
    ),
    (
        "a name twice",
        lambda lab: drawn(lab, CANONICAL, names=["John", "John"]),
        PromptError,
        "'John' stands among the names twice",
    ),
    ("one name", lambda lab: drawn(lab, CANONICAL, names=["John"]), PromptError, "two are needed"),
    ("an odd number", lambda lab: prompts.population(lab.model, 3, exact=True), PromptError, "n has to be even"),
    ("n of 4.0", lambda lab: prompts.population(lab.model, 4.0), PromptError, "4.0 is no whole number"),
    ("n in letters", lambda lab: prompts.population(lab.model, "4"), PromptError, "'4' is no whole number"),
    (
        "a seed below 0",
        lambda lab: prompts.population(lab.model, 4, seed=-1),
        PromptError,
        "give a number that is 0 or more",
    ),
    ("a seed of 1.5", lambda lab: prompts.population(lab.model, 4, seed=1.5), PromptError, "1.5 is no whole number"),
    (
        "too many prompts",
        lambda lab: prompts.population(
            lab.model, 4, templates=["{A} or {B}, {S} to"], names=["John", "Mary"], exact=True
        ),
        PromptError,
        "at most 2 distinct prompts",
    ),
    ("no model", lambda lab: prompts.population(None, 4), PromptError, "None is no loaded model: give models.load()"),
    ("a model's name", lambda lab: prompts.population("smollm2", 4), PromptError, "'smollm2' is no loaded model"),
    (
        "how",
        lambda lab: prompts.corrupt(lab.model, lab.pop, "shuffle"),
        PromptError,
        "unknown how 'shuffle': choose one of swap",
    ),
    ("corrupted twice", lambda lab: prompts.corrupt(lab.model, lab.other, "swap"), PromptError, "corrupted already"),
    (
        "new names nowhere",
        lambda lab: prompts.renamed(lab.model, lab.pop, {"S3": lab.pop.io_ids}, "x"),
        PromptError,
        "unknown position 'S3'",
    ),
    (
        "new names too few",
        lambda lab: prompts.renamed(lab.model, lab.pop, {"S2": lab.pop.io_ids[:3]}, "x"),
        PromptError,
        "3 entries along 'batch'",
    ),
    ("no batch", lambda lab: list(lab.pop.chunks(0)), PromptError, "give a number that is 1 or more"),
    ("no token", lambda lab: prompts.quoted(lab.model, -1), PromptError, "no token -1"),
    (
        "prompts as tokens",
        lambda lab: metrics.end_logits(lab.model, lab.pop.tokens),
        MetricError,
        "is no prompts.Population",
    ),
    ("half", lambda lab: frames.names(["a"], "train"), PromptError, "unknown half 'train'"),
    ("variant", lambda lab: variants.vary(lab.model, lab.pop, "extra"), PromptError, "unknown variant 'extra'"),
    (
        "words",
        lambda lab: variants.log_probability(lab.model, lab.pop, " Mary"),
        PromptError,
        "one text, and a list is asked for",
    ),
    ("a task of numbers", lambda lab: tasks.load(3), PromptError, "3 is no path"),
    ("a task of nothing", lambda lab: tasks.load(""), PromptError, "is no task that can be read"),
    # Numbers
    (
        "one group",
        lambda lab: metrics.bootstrap(lab.values, torch.zeros(8).long()),
        MetricError,
        "8 values of one group",
    ),
    ("one value", lambda lab: metrics.bootstrap(lab.values[:1]), MetricError, "needs two groups at least"),
    ("a draw for all", lambda lab: lab.alike.intervals(), MetricError, "prompts of one draw are one group"),
    ("no value", lambda lab: metrics.bootstrap(torch.zeros(0)), MetricError, "the population is empty"),
    ("NaN", lambda lab: metrics.bootstrap(torch.full((8,), NAN)), MetricError, "NaN or infinite numbers"),
    ("infinite", lambda lab: metrics.bootstrap(torch.full((8,), INF)), MetricError, "NaN or infinite numbers"),
    ("infinite, screened", lambda lab: metrics.screen(torch.full((1, 8), INF)), MetricError, "NaN or infinite ones"),
    ("a level of 95", lambda lab: rated(lab, level=95), MetricError, "lies between 0 and 1"),
    ("a level of 0", lambda lab: rated(lab, level=0.0), MetricError, "lies between 0 and 1"),
    ("a level of NaN", lambda lab: rated(lab, level=NAN), MetricError, "nan is no finite number"),
    ("no resamples", lambda lab: rated(lab, n_resamples=0), MetricError, "1 or more"),
    ("a quantile of 95", lambda lab: minimal(lab, quantile=95), PatchError, "lies between 0 and 1"),
    ("a quantile of 1", lambda lab: minimal(lab, quantile=1), PatchError, "lies between 0 and 1"),
    ("a quantile of NaN", lambda lab: minimal(lab, quantile=NAN), PatchError, "nan is no finite number"),
    ("no flips", lambda lab: metrics.screen(lab.values[None], n_flips=0), MetricError, "1 or more"),
    (
        "a list of values",
        lambda lab: metrics.bootstrap([1.0, 2.0]),
        MetricError,
        "a list is no tensor: give torch.as_tensor",
    ),
    ("NumPy values", lambda lab: metrics.bootstrap(np.zeros(3)), MetricError, "is no tensor: give torch.as_tensor"),
    (
        "a table of values",
        lambda lab: metrics.bootstrap(torch.zeros(2, 3)),
        MetricError,
        "its shape is (2, 3), and [batch]",
    ),
    (
        "groups of floats",
        lambda lab: metrics.bootstrap(lab.values, lab.values),
        MetricError,
        "whole numbers are asked for",
    ),
    (
        "groups too few",
        lambda lab: metrics.bootstrap(lab.values, lab.groups[:3]),
        MetricError,
        "3 entries along 'batch', and another argument has 8",
    ),
    ("truth values", lambda lab: metrics.bootstrap(lab.values > 3), MetricError, "real numbers are asked for"),
    (
        "one value over eight",
        lambda lab: metrics.restoration(lab.values, lab.values[:1], -lab.values),
        MetricError,
        "1 entries along 'batch', and another argument has 8",
    ),
    (
        "NaN to restore",
        lambda lab: metrics.restoration(lab.values * NAN, lab.values, -lab.values),
        MetricError,
        "NaN or infinite values among the runs",
    ),
    (
        "no gap",
        lambda lab: metrics.restoration(lab.values, lab.values, lab.values),
        MetricError,
        "restoration divides by this gap",
    ),
    (
        "logits of other prompts",
        lambda lab: metrics.logit_difference(lab.logits[:3], lab.pop),
        MetricError,
        "for 8 prompts",
    ),
    (
        "no share",
        lambda lab: metrics.bootstrap(lab.values, lab.groups, (0, 1)),
        MetricError,
        "leave the span",
    ),
    ("a share of nothing", lambda lab: metrics.share(0, 0), MetricError, "1 or more"),
    (
        "a share of no prompts",
        lambda lab: metrics.share_of(torch.zeros(0).bool(), torch.zeros(0).long()),
        MetricError,
        "of no prompts",
    ),
    (
        "passed in numbers",
        lambda lab: metrics.share_of(lab.values, lab.groups),
        MetricError,
        "truth values are asked for",
    ),
    (
        "epsilon",
        lambda lab: faithful.equivalence_test(lab.values, lab.values, lab.groups, 0.7),
        PatchError,
        "between 0 and a half",
    ),
    # Patching and circuits
    ("kind", lambda lab: swept(lab, "resid"), PatchError, "unknown kind 'resid': choose one of resid_pre"),
    ("direction", lambda lab: swept(lab, "z", direction="back"), PatchError, "unknown direction 'back'"),
    ("at", lambda lab: swept(lab, "z", at="S3"), PatchError, "unknown position 'S3'"),
    ("at no place", lambda lab: swept(lab, "z", at=[]), PatchError, "no position chosen"),
    ("a layer twice", lambda lab: swept(lab, "z", layers=[1, 1]), PatchError, "layer 1 is chosen twice"),
    ("a head twice", lambda lab: swept(lab, "z", only=[(1, 0), (1, 0)]), PatchError, "head (1, 0) is chosen twice"),
    ("one layer", lambda lab: swept(lab, "z", layers=1), PatchError, "1 is no list"),
    ("layers in a text", lambda lab: swept(lab, "z", layers="12"), PatchError, "one text, and a list is asked for"),
    ("no layers", lambda lab: swept(lab, "z", layers=iter(())), PatchError, "no layer chosen"),
    ("no function", lambda lab: swept(lab, "z", metric="logit difference"), PatchError, "is no function"),
    (
        "a metric of one number",
        lambda lab: swept(lab, "z", metric=lambda logits, pop: logits.mean()),
        PatchError,
        "one value for each is needed",
    ),
    ("runs", lambda lab: swept(lab, "z", runs={}), PatchError, "is no patching.Runs"),
    (
        "half of the partners",
        lambda lab: patching.sweep(lab.model, lab.pop, lab.other.subset([0]), "z"),
        PatchError,
        "1 prompts against 8",
    ),
    (
        "receivers for the logits",
        lambda lab: patching.path_patch(lab.model, lab.pop, lab.other, "logits", [(1, 0)]),
        PatchError,
        "none for into='logits'",
    ),
    (
        "into",
        lambda lab: patching.path_patch(lab.model, lab.pop, lab.other, "o", [(1, 0)]),
        PatchError,
        "unknown into 'o'",
    ),
    (
        "heads of nobody",
        lambda lab: patching.exchange(lab.model, lab.pop, lab.other, iter(())),
        PatchError,
        "no heads to exchange",
    ),
    ("sets", lambda lab: lab.joint.run(lab.run, []), PatchError, "give at least one set"),
    ("a source of prompts", lambda lab: lab.joint.run(lab.other, [[(2, 0)]]), PatchError, "is no forward.Run"),
    ("how to ablate", lambda lab: circuit.ablate(lab.model, lab.pop, how="median"), PatchError, "unknown how 'median'"),
    ("no reference", lambda lab: circuit.ablate(lab.model, lab.pop, [(1, 0)], "mean"), PatchError, "needs a reference"),
    (
        "hows",
        lambda lab: circuit.ablate_each(lab.model, lab.pop, [(1, 0)], "zero"),
        PatchError,
        "one text, and a list is asked for",
    ),
    ("no way", lambda lab: circuit.ablate_each(lab.model, lab.pop, [(1, 0)], []), PatchError, "no way to ablate"),
    ("no states", lambda lab: lab.runner.values([]), PatchError, "no states to run"),
    ("a state of nodes", lambda lab: lab.runner.values([[NODE]]), PatchError, "is no circuit.Keep"),
    (
        "K outside",
        lambda lab: faithful.completeness(lab.runner, [NODE], {"K": [(0, 0, "S2")]}),
        PatchError,
        "no node of the circuit",
    ),
    ("no circuit", lambda lab: faithful.greedy(lab.runner, []), PatchError, "an empty circuit"),
    ("no families", lambda lab: faithful.minimality(lab.runner, {}), PatchError, "no sets of nodes"),
    ("families in a list", lambda lab: faithful.minimality(lab.runner, [[NODE]]), PatchError, "is no dictionary"),
    (
        "edges in words",
        lambda lab: edges.run(lab.model, lab.pop, lab.other, [["embed -> logits"]]),
        PatchError,
        "is no edges.Edge",
    ),
    (
        "edges of no model",
        lambda lab: edges.run(lab.model, lab.pop, lab.other, [[edges.Edge("mlp 9", "logits")]]),
        PatchError,
        "no edge mlp 9",
    ),
    ("no sets of edges", lambda lab: edges.run(lab.model, lab.pop, lab.other, []), PatchError, "no sets of edges"),
    ("steps", lambda lab: edges.eap_ig(lab.model, lab.pop, lab.other, 0), PatchError, "1 or more"),
    (
        "at the middle",
        lambda lab: edges.eap(lab.model, lab.pop, lab.other, "middle"),
        PatchError,
        "unknown at 'middle'",
    ),
    (
        "sizes",
        lambda lab: edges.curve(lab.model, lab.pop, lab.other, lab.graph.edges[:2], [3]),
        PatchError,
        "give numbers from 0 to its length",
    ),
    ("a table without rows", lambda lab: families.judge({}), FamilyError, "give what `measure` returns"),
    ("shuffles", lambda lab: families.shuffled_control({}, "names"), FamilyError, "unknown how 'names'"),
    (
        "looks ahead",
        lambda lab: heads.position_attention(lab.model, lab.pop, "IO", "END"),
        HeadError,
        "no head looks ahead",
    ),
    ("no pairs", lambda lab: heads.position_attentions(lab.model, lab.pop, []), HeadError, "at least one pair"),
    ("stage", lambda lab: residual.decompose(lab.model, [lab.pop]), MetricError, "is no prompts.Population"),
    # Autoencoders
    ("no autoencoder", lambda lab: latents.scan(lab.model, None, lab.text), SaeError, "neither weights nor settings"),
    ("a folder", lambda lab: latents.neighbours("sae", 0), SaeError, "neither weights nor settings"),
    ("another width", lambda lab: latents.encode(lab.small, torch.ones(1, 2, 7)), SaeError, "vectors of 7 numbers"),
    ("another layer", lambda lab: sae.check_fits(lab.small, lab.model, 2), SaeError, "give it layer 1"),
    ("no contexts", lambda lab: sae.collect(lab.model, lab.text[:0], 1), SaeError, "at least two tokens"),
    ("one context", lambda lab: sae.collect(lab.model, lab.text[0], 1), SaeError, "[context pos] is asked for"),
    ("tokens below 0", lambda lab: sae.collect(lab.model, -lab.text, 1), SaeError, "counted from 0"),
    ("tokens beyond", lambda lab: sae.collect(lab.model, lab.text + 10**6, 1), SaeError, "counted from 0"),
    (
        "tokens of floats",
        lambda lab: sae.collect(lab.model, lab.text.float(), 1),
        SaeError,
        "whole numbers are asked for",
    ),
    ("NumPy tokens", lambda lab: sae.collect(lab.model, lab.text.numpy(), 1), SaeError, "is no tensor"),
    ("tokens in a list", lambda lab: sae.collect(lab.model, lab.text.tolist(), 1), SaeError, "a list is no tensor"),
    ("k", lambda lab: sae.train(lab.acts, d_sae=8, k=9, batch=20), SaeError, "between 1 and the number of latents"),
    ("lr", lambda lab: sae.train(lab.acts, batch=20, lr=NAN), SaeError, "nan is no finite number"),
    ("lr of 0", lambda lab: transcoder.train(lab.pairs, batch=20, lr=0), SaeError, "is above 0"),
    ("too few", lambda lab: sae.train(lab.acts, batch=10**6), SaeError, "fewer than one batch"),
    ("activations", lambda lab: sae.train(lab.acts.values), SaeError, "is no sae.Activations"),
    ("start", lambda lab: transcoder.train(lab.pairs, start="zero"), SaeError, "unknown start 'zero'"),
    (
        "freeze",
        lambda lab: attribution.Local(lab.model, lab.pop, lab.other, lab.small, 1, [1], {}, freeze=["mlp"]),
        SaeError,
        "unknown freeze 'mlp'",
    ),
    (
        "freeze in a text",
        lambda lab: attribution.Local(lab.model, lab.pop, lab.other, lab.small, 1, [1], {}, freeze="mlps"),
        SaeError,
        "one text",
    ),
    (
        "no points",
        lambda lab: attribution.Local(lab.model, lab.pop, lab.other, lab.small, 1, [1], {}, points=[]),
        SaeError,
        "at least one share",
    ),
    ("readers", lambda lab: lab.editor.heard(torch.ones(8, 48), [(0, 0, "S2")], "q"), SaeError, "can't hear an edit"),
    (
        "delta",
        lambda lab: lab.editor.heard(torch.ones(3, 48), [(2, 0, "END")], "q"),
        SaeError,
        "give a vector for each",
    ),
    (
        "delta of whole numbers",
        lambda lab: lab.editor.change("S2", torch.ones(8, 48, dtype=torch.long)),
        SaeError,
        "edits of int64 (8, 48) for 8 prompts",
    ),
    ("delta, changed", lambda lab: lab.editor.change("S2", torch.ones(4, 48)), SaeError, "give a vector for each"),
    (
        "place",
        lambda lab: latents.at_position(lab.model, lab.pop, lab.small, 1, "S3"),
        SaeError,
        "unknown position 'S3'",
    ),
    ("directions", lambda lab: latents.match([1.0], lab.small), SaeError, "neither an autoencoder nor directions"),
    ("a folder of no autoencoder", lambda lab: sae.load("nowhere"), SaeError, "holds no autoencoder"),
    (
        "words of another vocabulary",
        lambda lab: latents.rates(lab.codes, torch.ones(9).bool()),
        SaeError,
        "9 words for tokens up to",
    ),
    ("looks", lambda lab: readable.fit(lab.words, lab.fires, sees="everything"), MetricError, "choose kinds among"),
    ("kinds", lambda lab: readable.fit(lab.words, lab.fires, kinds=["verb"]), MetricError, "choose kinds among"),
    ("fires", lambda lab: readable.fit(lab.words, lab.fires.long()), MetricError, "truth values are asked for"),
    (
        "a direction of zeros",
        lambda lab: superposition.partners(torch.zeros(2, 3), torch.ones(2, 3)),
        MetricError,
        "zero or not finite",
    ),
    # Sentences and figures
    ("a verdict of NaN", lambda lab: report.claim("a-b", NAN, "observed"), ReportError, "nan is not one truth value"),
    (
        "a verdict in words",
        lambda lab: report.claim("a-b", "False", "observed"),
        ReportError,
        "'False' is not one truth value",
    ),
    (
        "a verdict in a list",
        lambda lab: report.claim("a-b", [False], "observed"),
        ReportError,
        "a list is not one truth value",
    ),
    (
        "a verdict to call",
        lambda lab: report.claim("a-b", lambda: False, "observed"),
        ReportError,
        "a function is not one truth value",
    ),
    ("a verdict of a number", lambda lab: report.check("x", 1), ReportError, "1 is not one truth value"),
    ("a verdict of None", lambda lab: report.check("x", None), ReportError, "None is not one truth value"),
    ("many verdicts", lambda lab: report.check("x", lab.values > 3), ReportError, "is not one truth value"),
    ("a surprise", lambda lab: report.Row("a", "b", "c", NAN), ReportError, "nan is not one truth value"),
    ("method", lambda lab: report.claim("a-b", True, "guessed"), ReportError, "unknown method 'guessed'"),
    ("key", lambda lab: report.claim("A claim", True, "observed"), ReportError, "can't name a claim"),
    ("a key of 3", lambda lab: report.claim(3, True, "observed"), ReportError, "3 is no text"),
    ("NaN in a sentence", lambda lab: report.put(x=NAN), ReportError, "no sentence can carry it"),
    ("a tensor in a sentence", lambda lab: report.put(x=lab.values), ReportError, "not Tensor"),
    ("NaN compared", lambda lab: report.compare({"wang.p_io": NAN}, True), ReportError, "nan is no finite number"),
    ("a table of numbers", lambda lab: report.table(["x"], [[3]]), ReportError, "3 is no text"),
    (
        "low alone",
        lambda lab: plots.bars(["a"], [1.0], alt="x", value_title="y", low=[0.0]),
        ReportError,
        "give both low",
    ),
    (
        "high alone",
        lambda lab: plots.bars(["a"], [1.0], alt="x", value_title="y", high=[2.0]),
        ReportError,
        "give both low",
    ),
    (
        "labels",
        lambda lab: plots.bars(["a"], [1.0, 2.0], alt="x", value_title="y"),
        ReportError,
        "1 in labels, 2 in values",
    ),
    (
        "label",
        lambda lab: plots.bars("a", [1.0], alt="x", value_title="y"),
        ReportError,
        "one text, and a list is asked for",
    ),
    (
        "no alternative",
        lambda lab: plots.bars(["a"], [1.0], alt=" ", value_title="y"),
        ReportError,
        "a figure needs alt",
    ),
    ("ragged", lambda lab: heat([[1.0, 2.0], [3.0]]), ReportError, "differs in length"),
    ("infinite cells", lambda lab: heat([[1.0, INF], [3.0, 4.0]]), ReportError, "an infinite value"),
    (
        "seven series",
        lambda lab: plots.lines(["a"], {str(i): [1.0] for i in range(7)}, alt="x", value_title="y", label_title="z"),
        ReportError,
        "draw fewer",
    ),
    (
        "no intervals",
        lambda lab: plots.points(["a"], {"b": [1.0]}, alt="x", value_title="y"),
        ReportError,
        "is no interval",
    ),
    (
        "a bin",
        lambda lab: plots.histogram({"a": [1.0]}, alt="x", value_title="y", bin_width=0.0),
        ReportError,
        "is above 0",
    ),
    ("low and labels", lambda lab: drawn_lines({"low": [1.0], "labels": [1.0, 2.0]}), ReportError, "1 in labels, 2 in"),
    (
        "a set of values",
        lambda lab: plots.bars(["b", "a"], {3.0, 1.0}, alt="x", value_title="y"),
        ReportError,
        "a set is no list: give its entries in the order that you mean",
    ),
    (
        "values in a dictionary",
        lambda lab: plots.bars(["b", "a"], {3.0: 1.0, 1.0: 2.0}, alt="x", value_title="y"),
        ReportError,
        "a dict is no list",
    ),
    (
        "too large for a figure",
        lambda lab: plots.bars(["a"], [10**400], alt="x", value_title="y"),
        ReportError,
        "a whole number of more than 64 bits: too large",
    ),
    ("too large for a head", lambda lab: circuit.ablate(lab.model, lab.pop, [(HUGE, 0)]), HeadError, "too large"),
    ("too large for a node", lambda lab: lab.runner.values([Keep([(1, HUGE, "END")])]), HeadError, "too large"),
    (
        "too large and alone",
        lambda lab: circuit.ablate(lab.model, lab.pop, [(HUGE,)]),
        HeadError,
        "more than 64 bits): a",
    ),
    ("too large for a choice", lambda lab: swept(lab, HUGE), PatchError, "unknown kind a whole number of more than 64"),
    ("too large for a sentence", lambda lab: report.put(x=HUGE), ReportError, "no sentence can carry it"),
    ("too large for a number", lambda lab: metrics.share(1, 10**400), MetricError, "more than 64 bits: too large"),
    # Models and records
    ("a long text", lambda lab: sae.collect(lab.model, lab.long, 1), SaeError, "contexts of 132 tokens"),
    (
        "a long text, mapped",
        lambda lab: transcoder.beyond_linear(lab.model, lab.long, lab.long),
        SaeError,
        "contexts of 132 tokens",
    ),
    ("long prompts", lambda lab: metrics.end_logits(lab.model, lab.pages), MetricError, "reads 128, the start token"),
    ("long prompts, swept", lambda lab: patching.sweep(lab.model, lab.pages, lab.pages, "z"), PatchError, "reads 128"),
    ("half precision", lambda lab: metrics.end_logits(lab.half, lab.pop), MetricError, "computes in bfloat16"),
    (
        "half precision, swept",
        lambda lab: patching.sweep(lab.half, lab.pop, lab.other, "z"),
        PatchError,
        "the lab measures in float32",
    ),
    ("half precision, collected", lambda lab: sae.collect(lab.half, lab.text, 1), SaeError, "computes in bfloat16"),
    ("half precision, copied", lambda lab: heads.copy_scores(lab.half), HeadError, "computes in bfloat16"),
    ("a model of 3", lambda lab: models.load(3), ModelError, "3 is no text"),
    ("a folder that isn't there", lambda lab: models.load("./nowhere"), ModelError, "doesn't exist"),
    ("prompts for a record", lambda lab: recorded.prompt_key(TEXT), EvidenceError, "is no prompts.Population"),
    ("a record", lambda lab: evidence.read("nowhere", "x"), EvidenceError, "can't be read"),
]


def drawn_lines(series):
    return plots.lines(["a"], series, alt="x", value_title="y", label_title="z")


def heat(values):
    return plots.heatmap(values, x=["a", "b"], y=["c", "d"], alt="x", x_title="y", y_title="z", unit="nats")


@pytest.mark.parametrize(("call", "error", "said"), [pytest.param(*one, id=name) for name, *one in BAD])
def test_an_error_says_what_was_wrong(lab, call, error, said):
    with pytest.raises(error) as raised:
        call(lab)
    assert type(raised.value) is error
    assert said in str(raised.value)
    assert "labcode" in raised.traceback[-1].path.parts


def test_there_are_many_bad_inputs():
    assert len({name for name, *_ in BAD}) == len(BAD) >= 300


def test_the_same_thing_in_another_dress_is_taken(lab):
    """Whole numbers of NumPy and torch, generators, arrays, texts of paths: with the same result."""
    model, pop, other = lab.model, lab.pop, lab.other
    plain = patching.sweep(model, pop, other, "z", at="END", only=[(1, 0), (2, 1)])
    for only in (
        np.array([(1, 0), (2, 1)]),
        torch.tensor([(1, 0), (2, 1)]),
        iter([(np.int64(1), 0), (2, 1)]),
        [[1, 0], [2, 1]],
    ):
        grid = patching.sweep(model, pop, other, "z", at="END", only=only)
        assert torch.equal(grid.values, plain.values)
        assert grid.axes == plain.axes
    whole = lab.runner.values([Keep([NODE])])
    assert torch.equal(lab.runner.values(Keep(node for node in [NODE]) for _ in "a"), whole)
    assert torch.equal(lab.runner.values([Keep([(np.int64(1), np.int32(0), "END")])]), whole)
    assert (
        pop.subset(np.array([0, 2])).prompts == pop.subset(iter([0, 2])).prompts == pop.subset(range(0, 4, 2)).prompts
    )
    assert report.Row("a", "b", "c", np.bool_(True)).as_expected is True
    hole = heat([[1.0, NAN], [-3.0, 2.0]])
    assert hole.data[0].zmax == 3.0


def test_gradients_can_be_had_wherever_the_reader_calls(lab):
    """With gradients off, or in inference mode, where torch gives none."""
    plain = edges.eap(lab.model, lab.pop, lab.other).values
    for off in (torch.no_grad(), torch.inference_mode()):
        with off:
            assert torch.equal(edges.eap(lab.model, lab.pop, lab.other).values, plain)
            local = attribution.Local(lab.model, lab.pop, lab.other, lab.small, 1, [1], {"a": [(2, 0, "END")]})
            assert local.graph().gap < 1e-3
            for training in (
                sae.train(lab.acts, d_sae=8, k=2, samples=20, batch=20).sae.W_dec,
                transcoder.train(lab.pairs, d_sae=8, k=2, samples=20, batch=20).transcoder.W_dec,
            ):
                assert not training.is_inference()


SIZES = {
    "ids": (prompts.renamed, lambda lab: [lab.model, lab.pop, {"S2": lab.pop.io_ids[:1]}, "x"], PromptError),
    "populations": (patching.sweep, lambda lab: [lab.model, lab.pop, lab.other.subset([0, 1, 2]), "z"], PatchError),
    "logits": (metrics.logit_difference, lambda lab: [lab.logits[:3], lab.pop], MetricError),
    "groups": (metrics.bootstrap, lambda lab: [lab.values, lab.groups[:3]], MetricError),
    "width": (heads.ov_ranks, lambda lab: [lab.model, 1, torch.ones(8, 5), lab.pop.io_ids], HeadError),
}


@pytest.mark.parametrize(("call", "given", "error"), SIZES.values(), ids=SIZES)
def test_sizes_are_compared_whatever_the_order_of_the_arguments(lab, call, given, error):
    """The same sentence by place, by keyword, and with the keywords the other way round."""
    named = dict(zip(inspect.signature(call).parameters, given(lab), strict=False))
    told = []
    for pairs in (named.items(), reversed(named.items())):
        with pytest.raises(error, match="argument") as raised:
            call(**dict(pairs))
        told.append(str(raised.value))
    with pytest.raises(error) as raised:
        call(*given(lab))
    assert {str(raised.value)} == set(told)


def guarded(of):
    return inputs.guarded(of, MetricError, {"__name__": "labcode.nowhere", **vars(patching)})


def test_only_what_comes_from_outside_is_looked_at(lab, monkeypatch):
    """A sweep calls a dozen functions of the lab; what a reader gives to be called, and other threads, are outside."""
    looked, check = [], inputs._check_model
    monkeypatch.setattr(inputs, "_check_model", lambda *args: (looked.append(args), check(*args)))
    swept(lab, "z", at="END", layers=[1])
    assert len(looked) == 1
    with pytest.raises(MetricError, match="argument pop: 1 entries along 'batch'"):
        swept(lab, "z", metric=lambda logits, pop: metrics.logit_difference(logits[:1], pop))
    with ThreadPoolExecutor(1) as pool, pytest.raises(MetricError, match="argument n: 0"):
        pool.submit(metrics.share, 0, 0).result()


def test_a_model_and_populations_are_compared_as_tensors_are(lab):
    def wide(x: Float[Tensor, "batch d_model"], model: TransformerBridge): ...

    def two(a: Population, b: Population, reference: Population | None = None): ...

    def rows(x: Float[Tensor, " batch"], pop: Population): ...

    def one(x: Float[Tensor, "batch 1"]): ...

    few = lab.pop.subset([0, 1, 2])
    for call, args, said in (
        (wide, [torch.zeros(2, 5), lab.model], "its d_model is 48, and another argument has 5"),
        (two, [lab.pop, few], "3 prompts against 8"),
        (rows, [lab.values[:3], lab.pop], "for 8 prompts"),
        (one, [torch.zeros(3, 2)], r"its shape is \(3, 2\)"),
    ):
        with pytest.raises(MetricError, match=said):
            guarded(call)(*args)
    guarded(wide)(torch.zeros(2, 48), lab.model)
    guarded(two)(few, few, lab.pop)  # means are taken over other prompts
    guarded(one)(torch.zeros(3, 1))


def test_a_dictionary_keeps_every_entry_under_a_plain_key():
    seen = []

    def table(x: Mapping[int, float]):
        seen.append(x)

    guarded(table)({torch.tensor(3): 1.0, np.int64(4): 2.0})
    assert seen == [{3: 1.0, 4: 2.0}]
    assert {type(key) for key in seen[0]} == {int}
    for value in (2.0, 1.0):
        with pytest.raises(MetricError, match="two of its keys are 3"):
            guarded(table)({torch.tensor(3): 1.0, 3: value})


def test_what_has_an_order_is_a_list():
    """The views of a dictionary; a generator; a set where order doesn't count."""
    table = {"a": 1.0, "b": -2.0}
    fig = plots.bars(table.keys(), table.values(), alt="x", value_title="y")
    assert fig.data[0].y == (1.0, -2.0)
    assert drawn_lines({"low": [1.0], "high": [2.0], "labels": [3.0]}).data[0].name == "low"
    assert families.jaccard({1, 2}, {2}) == 0.5
    interval = metrics.Interval(1, 0, 2, 3)
    plots.points(["a"], {"labels": [interval]}, alt="x", value_title="y")


def test_a_vocabulary_that_grew_has_another_key():
    tokenizer = toy.tokenizer()
    before = inputs.tokenizer_key(tokenizer)
    assert inputs.tokenizer_key(toy.tokenizer()) == before
    tokenizer.add_tokens(["another"])
    assert inputs.tokenizer_key(tokenizer) != before
    kept = weakref.ref(tokenizer)
    del tokenizer
    gc.collect()
    assert kept() is None


def test_a_model_in_half_precision_can_be_described(lab):
    """What only loads, counts or takes its tokenizer works with any."""
    assert len(prompts.population(lab.half, 2, exact=True)) == 2
    assert models.weights_key(lab.half) != models.weights_key(lab.model)
    assert models.summary(lab.half)


# What must not happen


def calls(lab, tmp_path):
    """Calls that work; in each, one argument after the other is replaced by what it cannot be."""
    model, pop, other, small, text = lab.model, lab.pop, lab.other, lab.small, lab.text
    ranking = lab.graph.edges[:50]
    circuits = {"one": [NODE], "two": [(2, 1, "END"), (0, 1, "S2")]}
    found = torch.eye(6)[:4]
    return [
        (Prompt, SENTENCE),
        (prompts.build, {"model": model, "prompts": [Prompt(**SENTENCE)]}),
        (prompts.canonical, {"model": model, "io": "Mary", "s": "John", "subject_first": True}),
        (
            prompts.population,
            {"model": model, "n": 4, "seed": 0, "templates": [CANONICAL], "names": ["John", "Mary", "Tom"]},
        ),
        (prompts.corrupt, {"model": model, "pop": pop, "how": "abc", "seed": 0}),
        (prompts.renamed, {"model": model, "pop": pop, "ids": {"S1": pop.io_ids}, "corruption": "x"}),
        (prompts.fresh_names, {"model": model, "pop": pop, "n": 2, "seed": 0}),
        (prompts.token_id, {"model": model, "word": " Mary"}),
        (prompts.quoted, {"model": model, "token": 5}),
        (prompts.single_token_names, {"model": model}),
        (pop.subset, {"index": [0, 1]}),
        (tasks.load, {"path": str(tmp_path / "none.toml")}),
        (tasks.parse, {"found": {"pair": []}, "where": "here"}),
        (tasks.populations, {"model": model, "task": tasks.Task("x", "y", ())}),
        (variants.vary, {"model": model, "pop": pop, "name": "extra S", "seed": 0}),
        (variants.gap, {"model": model, "pop": pop, "sentences": 1}),
        (variants.distinct, {"pop": pop}),
        (variants.rare_names, {"model": model}),
        (variants.log_probability, {"model": model, "pop": pop, "words": [" Mary"] * 8, "batch_size": 8}),
        (variants.signal_variant, {"model": model, "pop": pop, "token": "random", "position": "inverted", "seed": 0}),
        (variants.fit_signals, {"values": {("random", "original"): lab.values}}),
        (frames.names, {"known": ["a", "b"], "half": "test"}),
        (metrics.end_logits, {"model": model, "pop": pop, "batch_size": 8}),
        (metrics.logit_difference, {"logits": lab.logits, "pop": pop}),
        (metrics.p_io, {"logits": lab.logits, "pop": pop}),
        (metrics.prefers_io, {"logits": lab.logits, "pop": pop}),
        (metrics.restoration, {"patched": lab.values, "clean": lab.values, "corrupted": -lab.values}),
        (
            metrics.bootstrap,
            {"values": lab.values, "groups": lab.groups, "span": (-50.0, 50.0)},
        ),
        (metrics.bootstrap_cells, {"values": lab.values[None], "groups": lab.groups, "span": (-50.0, 50.0)}),
        (metrics.bounded, {"values": lab.values[None], "groups": lab.groups, "span": (-50.0, 50.0)}),
        (
            metrics.bootstrap_ratios,
            {"parts": lab.values[None], "whole": lab.values, "groups": lab.groups, "level": 0.9, "n_resamples": 20},
        ),
        (metrics.screen, {"values": lab.values[None], "groups": lab.groups, "n_flips": 20}),
        (
            metrics.tossed,
            {"values": lab.values[None], "groups": lab.groups, "signs": torch.ones(3, 4).long()},
        ),
        (metrics.share, {"passed": 1, "n": 2}),
        (metrics.share_of, {"passed": lab.values > 3, "groups": lab.groups}),
        (residual.decompose, {"model": model, "pop": pop, "batch_size": 8}),
        (lab.parts.select, {"kind": "head"}),
        (residual.logit_direction, {"model": model, "pop": pop}),
        (residual.bias_difference, {"model": model, "pop": pop}),
        (residual.direct_attribution, {"model": model, "pop": pop, "parts": lab.parts}),
        (residual.logit_lens, {"model": model, "pop": pop, "batch_size": 8}),
        (heads.check_heads, {"model": model, "heads": [(1, 0)], "n_heads": 0}),
        (heads.random_token_scores, {"model": model, "length": 4, "n": 1, "seeds": [0], "batch_size": 4}),
        (heads.position_attention, {"model": model, "pop": pop, "source": "END", "target": "IO", "batch_size": 8}),
        (heads.position_attentions, {"model": model, "pop": pop, "pairs": [("END", "IO")]}),
        (heads.same_layer_heads, {"model": model, "heads": [(1, 0)], "exclude": [(0, 0)], "seed": 0}),
        (heads.copy_scores, {"model": model, "n": ["Mary"], "seed": 0}),
        (heads.name_streams, {"model": model, "ids": pop.io_ids}),
        (
            heads.ov_ranks,
            {"model": model, "layer": 1, "stream": torch.ones(8, model.cfg.d_model), "ids": pop.io_ids},
        ),
        (lab.grid.top, {"n": 1}),
        (lab.grid.label, {"cell": 0}),
        (
            patching.sweep,
            {
                "model": model,
                "clean": pop,
                "corrupted": other,
                "kind": "z",
                "at": "END",
                "direction": "noising",
                "layers": [2],
                "heads": [0],
                "metric": metrics.logit_difference,
                "runs": None,
            },
        ),
        (
            patching.sweep,
            {"model": model, "clean": pop, "corrupted": other, "kind": "z", "at": "END", "only": [(2, 0)]},
        ),
        (
            patching.path_patch,
            {
                "model": model,
                "clean": pop,
                "corrupted": other,
                "into": "q",
                "receivers": [(2, 0)],
                "sender_at": "END",
                "receiver_at": "END",
                "direction": "noising",
                "only": [(1, 0)],
                "freeze_mlps": False,
            },
        ),
        (
            patching.path_patches,
            {
                "model": model,
                "clean": pop,
                "corrupted": other,
                "inputs": {"q": "END"},
                "receivers": [(2, 0)],
                "layers": [1],
            },
        ),
        (patching.exchange, {"model": model, "pop": pop, "source": other, "heads": [(2, 0)]}),
        (patching.Runs, {"model": model, "hooks": None}),
        (patching.first_difference, {"base": pop, "source": other}),
        (joint.Joint, {"model": model, "pop": pop}),
        (lab.joint.source, {"other": other}),
        (lab.joint.end_of, {"other": other}),
        (
            lab.joint.run,
            {"source": lab.joint.source(other), "sets": [[(2, 0)]], "kind": "z", "at": "END", "watch": [(2, 1)]},
        ),
        (Keep, {"nodes": [NODE]}),
        (Out, {"nodes": [NODE]}),
        (
            circuit.ablate,
            {
                "model": model,
                "pop": pop,
                "heads": [(1, 0)],
                "how": "zero",
                "at": "END",
                "reference": other,
                "seed": 0,
            },
        ),
        (circuit.ablate_each, {"model": model, "pop": pop, "heads": [(2, 0)], "hows": ["zero"], "seed": 0}),
        (circuit.references, {"model": model, "pop": pop, "least": 2, "seed": 0}),
        (circuit.Runner, {"model": model, "pop": pop, "reference": None, "how": "zero", "least": 2, "seed": 0}),
        (lab.runner.values, {"states": [Keep([NODE])]}),
        (edges.Graph, {"model": model}),
        (lab.graph.mask, {"edges": ranking[:2]}),
        (edges.of_heads, {"model": model, "nodes": [NODE]}),
        (edges.run, {"model": model, "clean": pop, "corrupted": other, "kept": [ranking[:2]]}),
        (edges.eap, {"model": model, "clean": pop, "corrupted": other, "at": "clean"}),
        (edges.eap_ig, {"model": model, "clean": pop, "corrupted": other, "steps": 1}),
        (
            edges.prune,
            {
                "model": model,
                "clean": pop,
                "corrupted": other,
                "ranking": ranking[:2],
                "tau": 9.0,
                "block": 5,
            },
        ),
        (edges.divergence, {"p": lab.values, "q": lab.values}),
        (edges.faithfulness, {"model": model, "clean": pop, "corrupted": other, "circuits": [ranking[:2]]}),
        (edges.curve, {"model": model, "clean": pop, "corrupted": other, "ranking": ranking[:2], "sizes": [1]}),
        (edges.area, {"points": []}),
        (
            edges.arrows,
            {
                "model": model,
                "clean": pop,
                "corrupted": other,
                "senders": {"a": [(0, 0, "S2")]},
                "receivers": {"b": [(2, 0, "END")]},
                "inputs": ["q"],
            },
        ),
        (edges.composition, {"model": model, "sender": (0, 0), "receiver": (2, 0), "kind": "q"}),
        (faithful.faithfulness, {"runner": lab.runner, "circuits": circuits}),
        (faithful.within, {"value": lab.values, "model": lab.values}),
        (faithful.correlation, {"a": lab.values, "b": lab.values, "draws": lab.groups}),
        (faithful.standard_sets, {"families": circuits}),
        (faithful.completeness, {"runner": lab.runner, "circuit": [NODE], "sets": {"one": [NODE]}}),
        (
            faithful.greedy,
            {"runner": lab.runner, "circuit": [NODE], "n": 1, "steps": 1, "candidates": 1, "seed": 0},
        ),
        (faithful.minimality, {"runner": lab.runner, "families": circuits}),
        (faithful.random_circuit, {"model": model, "nodes": [NODE], "seed": 0, "chain": False}),
        (
            faithful.equivalence_test,
            {"circuit": lab.values, "model": lab.values, "draws": lab.groups, "epsilon": 0.1},
        ),
        (
            faithful.independence_test,
            {
                "complement": lab.values,
                "model": lab.values,
                "draws": lab.groups,
                "n_permutations": 9,
                "seed": 0,
            },
        ),
        (faithful.minimality_test, {"runner": lab.runner, "circuit": [NODE], "n": 2, "quantile": 0.9, "seed": 0}),
        (faithful.ratio, {"part": lab.values, "whole": lab.values, "groups": lab.groups}),
        (families.measure, {"model": model, "pop": None, "corrupted": None, "writers": [(2, 0)]}),
        (families.writing, {"direct": torch.rand(3, 4, 8), "gap": lab.values, "groups": lab.groups}),
        (families.jaccard, {"a": [1], "b": [2]}),
        (families.judge, {"table": {"groups": lab.groups}, "rows": [0]}),
        (families.shuffled_control, {"table": {"groups": lab.groups}, "how": "heads", "n": 3, "seed": 0}),
        (sae.choose_layer, {"model": model, "tokens": text, "depth": 0.3}),
        (sae.collect, {"model": model, "tokens": text, "layer": 1, "batch_size": 4}),
        (sae.residual, {"model": model, "tokens": text, "layer": 1}),
        (sae.check_fits, {"sae": small, "model": model, "layer": 1}),
        (sae.check_weights, {"sae": small, "model": model}),
        (
            sae.train,
            {
                "data": lab.acts,
                "d_sae": 8,
                "k": 2,
                "samples": 20,
                "batch": 20,
                "lr": 1e-3,
                "seed": 0,
                "model_name": "",
                "every": 1,
                "frozen": None,
            },
        ),
        (
            sae.evaluate,
            {"model": model, "sae": small, "tokens": text, "layer": 1, "center": lab.acts.center, "contexts": 1},
        ),
        (sae.explained, {"x": found, "reconstruct": lambda x: x, "center": found[0]}),
        (sae.splice, {"model": model, "tokens": text[:1], "layer": 1, "replacements": {}, "median": 1.0}),
        (sae.pursue, {"x": found, "directions": found, "k": 2, "at_once": False}),
        (sae.save, {"sae": small, "folder": tmp_path / "saved", "record": {}}),
        (sae.load, {"folder": tmp_path / "none", "model": model}),
        (sae.layer_of, {"sae": small}),
        (latents.scan, {"model": model, "sae": small, "tokens": text, "layer": 1, "batch_size": 4}),
        (latents.codes_of, {"acts": lab.acts, "sae": small, "tokens": text}),
        (latents.codes, {"model": model, "sae": small, "tokens": text, "layer": 1}),
        (latents.encode, {"sae": small, "h": torch.ones(1, 2, model.cfg.d_model)}),
        (latents.neighbours, {"sae": small, "latent": 1, "n": 2}),
        (latents.match, {"a": small, "b": small}),
        (latents.promoted, {"model": model, "sae": small, "latent": 1, "used": None, "n": 2}),
        (latents.rates, {"codes": lab.codes, "words": torch.ones(model.cfg.d_vocab).bool()}),
        (
            latents.widest_by_chance,
            {"codes": lab.codes, "words": torch.ones(model.cfg.d_vocab).bool(), "n_shuffles": 2, "seed": 0},
        ),
        (latents.repeated, {"tokens": text}),
        (latents.Editor, {"model": model, "pop": pop, "layer": 1}),
        (lab.editor.change, {"at": "S2", "delta": torch.ones(8, model.cfg.d_model)}),
        (
            lab.editor.heard,
            {
                "delta": torch.ones(8, model.cfg.d_model),
                "readers": [(2, 0, "END")],
                "into": "kv",
                "through_mlps": True,
            },
        ),
        (latents.ablation, {"editor": lab.editor, "sae": small, "at": "S2", "chosen": [1]}),
        (latents.at_position, {"model": model, "pop": pop, "sae": small, "layer": 1, "at": "S2"}),
        (lab.codes.of, {"latent": 1}),
        (transcoder.collect, {"model": model, "tokens": text, "layer": 1, "batch_size": 4}),
        (transcoder.effects, {"editor": lab.editor, "other": other}),
        (transcoder.beyond_linear, {"model": model, "tokens": text, "held": text}),
        (transcoder.linear_map, {"pairs": lab.pairs, "ridge": 1e-3}),
        (transcoder.unexplained, {"pairs": lab.pairs, "predict": lambda x: x, "center": lab.pairs.center}),
        (
            transcoder.train,
            {
                "pairs": lab.pairs,
                "d_sae": 8,
                "k": 2,
                "samples": 20,
                "batch": 20,
                "lr": 1e-3,
                "linear": None,
                "aux": 0.0,
                "start": "tokens",
                "decoder": "trained",
                "seed": 0,
                "every": 1,
            },
        ),
        (transcoder.check_fits, {"transcoder": lab.coder, "model": model}),
        (
            attribution.Local,
            {
                "model": model,
                "pop": pop,
                "other": other,
                "sae": small,
                "layer": 1,
                "named": [1],
                "families": {"a": [(2, 0, "END")]},
                "more": 1,
                "freeze": ["norms"],
                "points": [1.0],
            },
        ),
        (attribution.comes_true, {"predicted": lab.values, "measured": lab.values, "factor": 2.0}),
        (attribution.by_chance, {"predicted": lab.values, "measured": lab.values, "kinds": None, "n": 2, "seed": 0}),
        (readable.Text, {"tokens": text, "decode": str}),
        (readable.fit, {"text": lab.words, "fires": lab.fires, "few": 2, "kinds": ["token"], "sees": "all"}),
        (readable.score, {"rule": readable.Rule("repeated token"), "text": lab.words, "fires": lab.fires}),
        (readable.f1, {"said": lab.fires, "true": lab.fires}),
        (superposition.unit, {"vectors": found}),
        (superposition.partners, {"found": found, "true": found}),
        (superposition.matched, {"found": found, "true": found}),
        (superposition.different_causes, {"acts": found, "values": found, "weights": torch.eye(6), "top": 2}),
        (corpus.distinct, {"text": text, "n": 4}),
        (corpus.masked, {"text": "x"}),
        (corpus.masked_tokens, {"tokens": ["x"]}),
        (corpus.read_corpus, {"folder": tmp_path, "name": "x"}),
        (evidence.groups, {"pop": pop}),
        (evidence.populations, {"model": model, "n": 24, "exact": True}),
        (evidence.read, {"path": tmp_path / "none", "key": "x"}),
        (recorded.prompt_key, {"pop": pop}),
        (models.prepare, {"request": "./nowhere"}),
        (models.edition, {"model": model}),
        (models.summary, {"model": model}),
        (models.weights_key, {"model": model}),
        (report.put, {"x": 1.0}),
        (
            report.claim,
            {"key": "a-b", "holds": True, "method": "observed", "against": "x", "source": "", "origin": "measured"},
        ),
        (report.check, {"text": "x", "holds": True}),
        (report.compare, {"values": {"wang.p_io": 0.5}, "same_model": True}),
        (report.published, {"keys": ["wang.p_io"]}),
        (report.expected, {"rows": [report.Row("a", "b", "c", True)]}),
        (report.Row, {"what": "a", "expected": "b", "observed": "c", "as_expected": True}),
        (report.table, {"head": ["x"], "rows": [["y"]]}),
        (report.signed, {"value": 1.0}),
        (
            plots.bars,
            {"labels": ["a"], "values": [1.0], "alt": "x", "value_title": "y", "low": [0.0], "high": [2.0]},
        ),
        (plots.histogram, {"groups": {"a": [1.0]}, "alt": "x", "value_title": "y", "bin_width": 0.5}),
        (
            plots.lines,
            {
                "labels": ["a"],
                "series": {"b": [1.0]},
                "alt": "x",
                "value_title": "y",
                "label_title": "z",
                "low": {"b": [0.0]},
                "high": {"b": [2.0]},
            },
        ),
        (
            plots.heatmap,
            {
                "values": [[1.0]],
                "x": ["a"],
                "y": ["b"],
                "alt": "x",
                "x_title": "y",
                "y_title": "z",
                "unit": "nats",
                "hover": [["t"]],
                "diverging": True,
                "height": 300,
            },
        ),
        (
            plots.scatter,
            {
                "x": [1.0],
                "y": [2.0],
                "labels": ["a"],
                "alt": "x",
                "x_title": "y",
                "y_title": "z",
                "groups": ["g"],
                "named": 1,
            },
        ),
        (
            plots.points,
            {"labels": ["a"], "series": {"b": [metrics.Interval(1, 0, 2, 3)]}, "alt": "x", "value_title": "y"},
        ),
        (
            plots.fronts,
            {
                "series": {"b": [(1.0, metrics.Interval(1, 0, 2, 3))]},
                "alt": "x",
                "value_title": "y",
                "label_title": "z",
            },
        ),
        (plots.prompt_html, {"tokens": ["a"], "positions": {"S2": 0}}),
    ]


HOSTILE = [
    None,
    -1,
    NAN,
    "nonsense",
    "",
    [],
    [None],
    [(99, 0, "END")],
    {},
    {"x": 1},
    object(),
    np.zeros(3),
    torch.zeros(0),
    torch.zeros(2, 0, 3),
    torch.tensor(NAN),
    torch.full((8,), NAN),
    torch.full((4, 12), -1),
    torch.ones(8, dtype=torch.bool),
    10**400,
    [10**400],
    HUGE,
    [(HUGE, 0)],
    [(1, HUGE, "END")],
    {HUGE: 1},
]


def test_no_traceback_of_another_library_reaches_the_reader(lab, tmp_path, monkeypatch):
    """Every argument of 130 calls in turn is None, NaN, empty, of another type or shape, or out of range."""
    monkeypatch.chdir(tmp_path)  # some texts are good names of folders
    foreign, n = [], 0
    for function, kwargs in calls(lab, tmp_path):
        for name in kwargs:
            for bad in [*HOSTILE, iter(())]:
                n += 1
                try:
                    function(**kwargs | {name: bad})
                except LabError:
                    continue
                except Exception as error:
                    what = f"{function.__qualname__}({name}={inputs.shown(bad)}): {type(error).__name__}: {error}"
                    foreign.append(what.split("\n")[0][:200])
    assert n > 7_000
    assert not foreign, f"{len(foreign)} of {n}:\n" + "\n".join(foreign)
