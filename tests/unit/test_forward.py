"""Our forward arithmetic is the bridge's, from any position on; what it does not know is refused by name."""

from __future__ import annotations

import pytest
import torch

from labcode import forward, prompts
from labcode.errors import ModelError
from labcode.forward import Network, Suffix, record


def test_the_arithmetic_gives_the_bridges_logits_from_any_position_on(tiny):
    clean = prompts.canonical(tiny)
    run = record(tiny, clean.tokens, clean.end, Suffix.hooks(tiny))
    for start in (0, 5, int(clean.end)):
        suffix = Suffix.proven(Network(tiny), run, clean.end, torch.tensor([start]))
        torch.testing.assert_close(suffix.unpatched(torch.tensor([start])), run.logits, atol=1e-4, rtol=0)


def test_the_check_of_a_model_passes_where_they_agree(tiny, toy):
    forward.check(tiny)
    forward.check(toy)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("parallel_attn_mlp", True, "attention and MLP in parallel, which the lab does not know: use a decoder"),
        ("act_fn", "gelu_fast", "activation function 'gelu_fast'"),
        ("normalization_type", "SoloRMS", "normalisation 'SoloRMS'"),
        ("eps", 0.5, "a forward pass whose logits differ from ours"),
    ],
)
def test_the_check_names_what_differs(tiny, monkeypatch, name, value, message):
    monkeypatch.setattr(tiny.cfg, name, value)
    with pytest.raises(ModelError, match=message):
        forward.check(tiny)
