"""Which model is chosen and why, what a reader's folder must hold, and what the command line says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import folders
import pytest

from labcode import models
from labcode.errors import LabError, ModelError
from labcode.models.choice import first_that_works


@pytest.fixture(autouse=True)
def bare(clean_env):
    return clean_env


def run(*arguments: str, **env: str) -> subprocess.CompletedProcess:
    import os

    environment = {name: value for name, value in os.environ.items() if not name.startswith("LAB_MODEL")}
    command = [sys.executable, "-m", "labcode.models", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env={**environment, **env}, timeout=300)


def one_error(done: subprocess.CompletedProcess) -> str:
    assert done.returncode == 2, done
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    return done.stderr


def test_a_name_is_taken_as_it_is(bare):
    assert models.choose("smollm2") == models.Choice("smollm2", "LAB_MODEL=smollm2 asks for it")
    bare(LAB_MODEL="gpt2")
    assert models.choose().name == "gpt2"
    bare(LAB_MODEL_WHY="the hub answers")
    assert models.choose().why == "the hub answers"
    # The reason in the environment belongs to the model in the environment.
    assert models.choose("smollm2").why == "LAB_MODEL=smollm2 asks for it"


def test_auto_without_hub_takes_the_embedded_model_and_says_why(tmp_path):
    done = run("--json", HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path))
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert record["name"] == "smollm2"
    assert record["title"] == "SmolLM2-135M-Instruct"
    assert record["why"] == "GPT-2 small isn't in the hub's cache and HF_HUB_OFFLINE is set"
    assert (Path(record["folder"]) / "model.safetensors").is_file()
    assert len(record["fingerprint"]) == 16


def test_the_command_line_says_it_in_one_line(tiny_llama):
    done = run(LAB_MODEL=str(tiny_llama.folder))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{tiny_llama.folder.name}: LAB_MODEL names this folder ({tiny_llama.folder})\n"


def test_an_unknown_name_lists_the_known_ones():
    assert "LAB_MODEL=gpt3 isn't a model: use auto, gpt2, smollm2, or the path" in one_error(run(LAB_MODEL="gpt3"))


def test_gpt2_by_name_never_falls_back(tmp_path):
    text = one_error(run(LAB_MODEL="gpt2", HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path)))
    assert "GPT-2 small isn't in the hub's cache and HF_HUB_OFFLINE is set" in text
    assert "LAB_MODEL=smollm2" in text


def test_every_error_is_a_lab_error():
    assert issubclass(ModelError, LabError)


def test_loading_an_unlocated_choice_says_so():
    from labcode.models.boot import boot

    with pytest.raises(ModelError, match="call prepare"):
        boot(models.Choice("smollm2", "a test"))


def test_only_auto_falls_back(monkeypatch, tmp_path):
    from labcode.models import choice

    monkeypatch.setattr(choice, "choose", lambda request: models.Choice(request or "gpt2", "a test"))
    with pytest.raises(ModelError, match="HF_HUB_OFFLINE"):
        first_that_works("gpt2", lambda chosen: None)


class TestFolders:
    @pytest.fixture
    def folder(self, tmp_path, tiny_llama) -> Path:
        for file in tiny_llama.folder.iterdir():
            (tmp_path / file.name).write_bytes(file.read_bytes())
        return tmp_path

    def refused(self, folder: Path) -> str:
        with pytest.raises(ModelError) as caught:
            models.choose(str(folder))
        assert str(folder) in str(caught.value)
        return str(caught.value)

    def test_a_good_folder_is_taken_whole(self, folder, monkeypatch):
        chosen = models.choose(str(folder))
        assert (chosen.name, chosen.folder, chosen.title) == (str(folder), folder, folder.name)
        monkeypatch.chdir(folder.parent)
        assert models.choose(f"./{folder.name}") == chosen
        assert models.choose(folder.name) == chosen
        assert models.prepare(str(folder)) == chosen

    def test_a_folder_that_is_not_there(self, tmp_path):
        assert "doesn't exist" in self.refused(tmp_path / "none")

    def test_a_name_from_the_hub_is_not_a_folder(self, monkeypatch, tmp_path):
        monkeypatch.chdir(tmp_path)
        with pytest.raises(ModelError, match=r"openai-community/gpt2 doesn't exist; give the folder"):
            models.choose("openai-community/gpt2")

    def test_a_file(self, folder):
        assert "is a file, not a folder" in self.refused(folder / "config.json")

    def test_no_config(self, folder):
        (folder / "config.json").unlink()
        assert "no config.json" in self.refused(folder)

    @pytest.mark.parametrize("text", ["", "[]", "{", '"a"'])
    def test_a_config_that_cannot_be_read(self, folder, text):
        (folder / "config.json").write_text(text)
        assert "config.json can't be read" in self.refused(folder)

    def test_an_encoder_decoder(self, folder):
        from transformers import T5Config

        T5Config(architectures=["T5ForConditionalGeneration"]).save_pretrained(folder)
        text = self.refused(folder)
        assert "encoder-decoder model (T5ForConditionalGeneration)" in text
        assert "decoder-only" in text

    def test_an_encoder(self, folder):
        from transformers import BertConfig

        BertConfig(architectures=["BertForMaskedLM"]).save_pretrained(folder)
        assert "holds a BertForMaskedLM" in self.refused(folder)

    def test_pickled_weights_only(self, folder):
        (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
        text = self.refused(folder)
        assert "only pickled weights (pytorch_model.bin)" in text
        assert "save_pretrained" in text

    def test_no_weights(self, folder):
        (folder / "model.safetensors").unlink()
        assert "has no weights" in self.refused(folder)

    @pytest.mark.parametrize("keep", [0, 5, 100, -1])
    def test_truncated_weights(self, folder, keep):
        weights = folder / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:keep])
        assert "model.safetensors is truncated or not a safetensors file" in self.refused(folder)

    def test_no_tokenizer(self, folder):
        (folder / "tokenizer.json").unlink()
        assert "has no tokenizer" in self.refused(folder)

    def test_an_architecture_that_the_bridge_does_not_know(self, folder):
        config = json.loads((folder / "config.json").read_text())
        config.update(architectures=["NovelForCausalLM"], model_type="novel")
        (folder / "config.json").write_text(json.dumps(config))
        with pytest.raises(ModelError, match=r"can't be loaded on cpu .*TransformerBridge supports"):
            models.load(str(folder))

    def test_the_fingerprint_changes_with_weights_and_tokenizer(self, folder):
        marks = [models.fingerprint(models.choose(str(folder)))]
        assert models.fingerprint(models.choose(str(folder))) == marks[0]
        folders.write_llama(folder, seed=5)
        marks.append(models.fingerprint(models.choose(str(folder))))
        tokenizer = folder / "tokenizer.json"
        tokenizer.write_text(tokenizer.read_text() + " ")
        marks.append(models.fingerprint(models.choose(str(folder))))
        assert len(set(marks)) == 3
        known = {models.fingerprint(models.Choice(name, "")) for name in models.KNOWN}
        assert len(known) == 2


def test_the_random_gpt2_folder_has_the_shape_of_gpt2_small(random_gpt2_folder):
    config = json.loads((random_gpt2_folder / "config.json").read_text())
    assert (config["n_layer"], config["n_head"], config["n_embd"]) == (12, 12, 768)
    assert models.choose(str(random_gpt2_folder)).folder == random_gpt2_folder
