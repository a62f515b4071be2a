"""The embedded model as `load` gives it: what it computes, how it tokenises, and that loading leaves no trace."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import warnings

import pytest
import torch

from labcode import models
from labcode.errors import ModelError
from labcode.models import selfcheck

CANONICAL = selfcheck.CANONICAL


def test_the_canonical_prompt_gives_the_known_numbers(smollm2):
    logits = smollm2(smollm2.to_tokens(CANONICAL))[0, -1]
    mary, john = smollm2.to_single_token(" Mary"), smollm2.to_single_token(" John")
    assert int(logits.argmax()) == mary
    assert float(logits[mary] - logits[john]) == pytest.approx(5.576, abs=5e-3)
    assert float(logits.softmax(-1)[mary]) == pytest.approx(0.90, abs=5e-3)


def test_it_is_ready_to_be_measured(smollm2):
    assert not smollm2.training
    assert not any(parameter.requires_grad for parameter in smollm2.parameters())
    assert {parameter.dtype for parameter in smollm2.parameters()} == {torch.float32}
    assert smollm2.compatibility_mode
    assert models.summary(smollm2) == (
        "SmolLM2-135M-Instruct: 30 layers x 9 heads (3 key/value heads), d_model 576, RMSNorm, rotary positions, "
        "135 M parameters, float32"
    )


def test_bos_comes_first_and_once(smollm2):
    tokens = smollm2.to_str_tokens(CANONICAL)
    assert tokens[:3] == ["<|im_start|>", "When", " John"]
    assert tokens.count("<|im_start|>") == 1
    assert smollm2.to_str_tokens(CANONICAL, prepend_bos=False)[0] == "When"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("in 2024", ["in", " ", "2", "0", "2", "4"]),
        # Digits are cut off first, so the two spaces are one token; GPT-2's pattern alone gives two tokens.
        ("a  7", ["a", "  ", "7"]),
        ("x12.5", ["x", "1", "2", ".", "5"]),
    ],
)
def test_digits_are_cut_off_before_the_words(smollm2, text, expected):
    assert smollm2.to_str_tokens(text, prepend_bos=False) == expected


def test_loading_leaves_no_trace(tiny_llama, capfd):
    import transformers.utils.logging as transformers_logging

    root, library = logging.getLogger(), logging.getLogger("transformers")
    before = (root.level, library.level, transformers_logging.is_progress_bar_enabled(), list(warnings.filters))
    models.load(str(tiny_llama.folder))
    after = (root.level, library.level, transformers_logging.is_progress_bar_enabled(), list(warnings.filters))
    assert after == before
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""


def test_an_inverted_sign_fails_the_self_check(smollm2):
    def invert(logits, hook):
        return -logits

    with smollm2.hooks(fwd_hooks=[("unembed.hook_out", invert)]), pytest.raises(ModelError) as caught:
        selfcheck.self_check(smollm2, "smollm2")
    text = str(caught.value)
    assert "= -5.58, expected +5.0 to +6.2" in text
    assert "device cpu" in text
    assert "requirements.txt" in text
    assert selfcheck.self_check(smollm2, "smollm2") == pytest.approx(5.576, abs=5e-3)


def test_logits_that_are_not_finite_fail_the_self_check(smollm2):
    def spoil(logits, hook):
        return logits.index_fill(-1, torch.tensor([17]), float("nan"))

    with (
        smollm2.hooks(fwd_hooks=[("unembed.hook_out", spoil)]),
        pytest.raises(ModelError, match="aren't finite"),
    ):
        selfcheck.self_check(smollm2, "smollm2")


def test_another_token_on_top_fails_the_self_check(smollm2):
    """The sign alone can be right by chance."""
    the = smollm2.to_single_token(" the")

    def raise_it(logits, hook):
        return logits.index_fill(-1, torch.tensor([the]), 100.0)

    with (
        smollm2.hooks(fwd_hooks=[("unembed.hook_out", raise_it)]),
        pytest.raises(ModelError, match="the likeliest token is ' the', expected ' Mary'"),
    ):
        selfcheck.self_check(smollm2, "smollm2")


def test_a_random_model_fails_the_self_check_of_gpt2(tiny_gpt2):
    with pytest.raises(ModelError, match="GPT-2 small fails its self-check on device cpu"):
        selfcheck.self_check(tiny_gpt2.bridge, "gpt2")


def test_an_unknown_device_is_one_clear_error(tiny_llama):
    with pytest.raises(ModelError, match=r"can't be loaded on cuda:99"):
        models.load(str(tiny_llama.folder), device="cuda:99")


@pytest.mark.gpt2
def test_gpt2_small_is_what_it_says(gpt2):
    assert "12 layers x 12 heads, d_model 768, LayerNorm, learned positions, 124 M" in models.summary(gpt2)
    assert selfcheck.self_check(gpt2, "gpt2") == pytest.approx(3.172, abs=0.02)


def test_importing_the_package_is_light():
    code = (
        "import sys, json, labcode.models, labcode.models.__main__; labcode.models.choose('smollm2');"
        "print(json.dumps([m for m in ('torch', 'transformers', 'transformer_lens') if m in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []
