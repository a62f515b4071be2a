"""Bad input is named, other architectures are replayed, and a model is left as it was found."""

from __future__ import annotations

import dataclasses

import folders
import pytest
import torch

from labcode import models, prompts
from labcode.errors import LabError
from labcode.metrics import logit_difference
from labcode.patching import PatchError, sweep
from labcode.patching.plan import plan
from labcode.patching.replay import check_hook_is_live
from labcode.patching.suffix import Suffix, record


def hooks_on(model):
    return {name for name, point in model.hook_dict.items() if point.fwd_hooks or point.bwd_hooks}


@pytest.fixture
def tiny(tiny_gpt2):
    assert not hooks_on(tiny_gpt2.bridge)
    return tiny_gpt2.bridge


@pytest.fixture
def clean(tiny):
    return prompts.canonical(tiny)


@pytest.fixture
def corrupted(tiny, clean):
    return prompts.corrupt(tiny, clean, "swap")


@pytest.fixture(scope="module")
def parallel(tmp_path_factory):
    """A model whose attention and MLP run side by side, which the fast engine does not have."""
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    folder = tmp_path_factory.mktemp("tiny-neox")
    config = GPTNeoXConfig(
        vocab_size=folders.copy_tokenizer(folder),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = GPTNeoXForCausalLM(config)
    folders.randomise(model, 0.15, 5)
    model.save_pretrained(folder)
    return models.load(str(folder))


def test_another_architecture_is_replayed_with_hooks_and_says_so(parallel):
    clean = prompts.canonical(parallel)
    corrupted = prompts.corrupt(parallel, clean, "swap")
    with pytest.warns(UserWarning, match="attention and MLP in parallel"):
        grid = sweep(parallel, clean, corrupted, "z", at=["S2", "END"])
    assert grid.engine == "replay"
    _, cache = parallel.run_with_cache(clean.tokens)

    def patch(z, hook):
        z[:, clean.end, 2] = cache["blocks.1.attn.hook_z"][:, clean.end, 2]
        return z

    logits = parallel.run_with_hooks(corrupted.tokens, fwd_hooks=[("blocks.1.attn.hook_z", patch)])
    torch.testing.assert_close(grid.values[1, 2, 1], logit_difference(logits[:, -1], clean), atol=1e-5, rtol=0)
    assert (grid.values[1, 2, 1] - grid.corrupted).abs() > 1e-3


@pytest.mark.parametrize("kind", ["resid_pre", "attn_out", "mlp_out", "z", "q", "k", "v", "pattern"])
def test_a_model_under_hooks_is_swept_with_them(tiny, clean, corrupted, kind):
    """A hook of the reader's own makes the bridge differ from our arithmetic: the slow engine, never wrong numbers."""
    with tiny.hooks(fwd_hooks=[("blocks.1.hook_mlp_out", lambda x, hook: 0.5 * x)]):
        with pytest.warns(UserWarning, match="differs from ours"):
            grid = sweep(tiny, clean, corrupted, kind, layers=[0])
        hooked = logit_difference(tiny(clean.tokens)[:, -1], clean)
    assert grid.engine == "replay"
    torch.testing.assert_close(grid.clean, hooked, atol=1e-6, rtol=0)
    plain = sweep(tiny, clean, corrupted, kind, layers=[0])
    assert plain.engine == "suffix"
    assert (plain.values - grid.values).abs().max() > 1e-2


def test_both_engines_give_the_same_numbers(tiny, clean, corrupted, monkeypatch):
    kinds = ("resid_pre", "attn_out", "mlp_out", "z", "q", "k", "v", "pattern")
    fast = {kind: sweep(tiny, clean, corrupted, kind, at="S2") for kind in kinds}
    monkeypatch.setattr("labcode.patching.suffix.TOLERANCE", -1.0)
    for kind in kinds:
        with pytest.warns(UserWarning, match="differs from ours"):
            slow = sweep(tiny, clean, corrupted, kind, at="S2")
        assert (slow.engine, fast[kind].engine) == ("replay", "suffix")
        torch.testing.assert_close(slow.values, fast[kind].values, atol=1e-4, rtol=0)


def test_a_hook_that_a_model_ignores_is_refused(toy):
    """The toy computes its attention natively: its pattern can be read, but not written."""
    pop = prompts.canonical(toy)
    check_hook_is_live(toy, pop, "z")
    with pytest.raises(PatchError, match=r"hook_pattern, so 'pattern'"):
        check_hook_is_live(toy, pop, "pattern")


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("engine", ["suffix", "replay"])
def test_no_hook_is_left_behind_when_a_sweep_is_interrupted(tiny, clean, corrupted, error, engine, monkeypatch):
    calls = []

    def interrupt(logits, pop):
        calls.append(len(hooks_on(tiny)))
        if len(calls) > 3:
            raise error
        return logit_difference(logits, pop)

    if engine == "replay":
        monkeypatch.setattr("labcode.patching.suffix.TOLERANCE", -1.0)
    with pytest.raises(error), pytest.warns() if engine == "replay" else pytest.MonkeyPatch.context():
        sweep(tiny, clean, corrupted, "z", metric=interrupt, max_bytes=1)
    assert not hooks_on(tiny)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_no_hook_is_left_behind_when_a_forward_pass_is_interrupted(tiny, clean, error):
    seen = []

    def interrupt(*args, **kwargs):
        seen.append(hooks_on(tiny))
        raise error

    handle = tiny.blocks[2].register_forward_pre_hook(interrupt)
    try:
        with pytest.raises(error):
            record(tiny, [clean], ["attn.hook_z"])
    finally:
        handle.remove()
    assert seen[0], "no hook was on while the model ran: nothing is tested"
    assert not hooks_on(tiny)


def test_prompts_that_do_not_align_show_both_token_lists(tiny, clean):
    other = prompts.build(
        tiny, [dataclasses.replace(clean.prompts[0], text=clean.prompts[0].text.replace("store", "big store"))]
    )
    with pytest.raises(PatchError, match=r"part at position 8(?s:.*) big(?s:.*) store"):
        sweep(tiny, clean, other, "z")
    with pytest.raises(PatchError, match="2 prompts against 1"):
        sweep(tiny, clean, clean.subset([0, 0]), "z")


def test_identical_runs_have_no_restoration(tiny, clean):
    with pytest.raises(LabError, match="corruption changes the answer"):
        sweep(tiny, clean, clean, "resid_pre", layers=[0]).restoration()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"kind": "resid"}, "unknown kind 'resid': choose one of resid_pre"),
        ({"at": "S3"}, "unknown position 'S3'"),
        ({"at": ["S2", "all"]}, "unknown position 'all'"),
        ({"layers": [3]}, "no layer 3: this model has 3"),
        ({"layers": []}, "no layer chosen"),
        ({"heads": [-1]}, "no head -1: this model has 4"),
        ({"kind": "mlp_out", "heads": [0]}, "mlp_out belongs to no head"),
        ({"direction": "backwards"}, "unknown direction"),
        ({"metric": lambda logits, pop: logits}, r"metric gave shape \(1, 49152\) for 1 runs"),
        ({"metric": lambda logits, pop: logits[:, 0] * torch.nan}, "metric is NaN on 'When John"),
    ],
)
def test_bad_input_is_named(tiny, clean, corrupted, wrong, message):
    with pytest.raises(PatchError, match=message):
        sweep(tiny, clean, corrupted, **{"kind": "z", **wrong})
    assert not hooks_on(tiny)


def test_each_position_needs_prompts_of_one_length(tiny):
    pop = prompts.population(tiny, 4, seed=1)
    with pytest.raises(PatchError, match=r"no common positions: use at=\[names\]"):
        sweep(tiny, pop, prompts.corrupt(tiny, pop, "swap"), "resid_pre", at="each")


def test_an_attention_only_model_has_no_mlp_to_patch(toy):
    pop = prompts.canonical(toy)
    with pytest.raises(PatchError, match="no mlp_out"):
        sweep(toy, pop, prompts.corrupt(toy, pop, "swap"), "mlp_out")


def test_cells_before_the_first_difference_cost_nothing(tiny, clean, corrupted):
    work = plan(tiny, clean, "z", ["IO", "S2", "END"], None, None)
    rows = work.rows(clean.positions["S2"])
    assert len(rows) == 2 * 3 * 4
    assert set(rows.start.tolist()) == {int(clean.positions["S2"]), int(clean.end)}


def test_the_arithmetic_is_compared_from_the_first_difference_on(tiny, clean):
    (run,) = record(tiny, [clean], Suffix.hooks(tiny))
    for start in (0, 5, int(clean.end)):
        suffix = Suffix.proven(tiny, run, clean.end, torch.tensor([start]))
        torch.testing.assert_close(suffix.unpatched(torch.tensor([start])), run.logits, atol=1e-4, rtol=0)
