"""Recorded data say when they are no more what was recorded: all of them, in one way."""

from __future__ import annotations

import json
import shutil

import pytest

from labbook.show import bench
from labcode import corpus, sae, sealed
from labcode.corpus import DATA
from labcode.errors import EvidenceError, SaeError

BESIDE = {"corpus-smollm2.json": ["corpus-smollm2.npy.xz"], sae.RECORD: ["cfg.json", "sae_weights.safetensors"]}
EVERY = sorted(path for path in DATA.rglob("*.json") if path.name != "cfg.json")
RECORD = {"name": "Zoë", "rows": [{"value": 0.125}, {"value": -3e-5}], "at": (1, 2)}


@pytest.mark.parametrize("path", EVERY, ids=lambda path: path.relative_to(DATA).as_posix())
def test_the_recorded_data_are_what_was_recorded(path):
    assert sealed.opened(path, *(path.with_name(name) for name in BESIDE.get(path.name, ())))


@pytest.mark.parametrize("indent", [1, None])
def test_what_is_written_comes_back_whatever_line_ends_it_has(tmp_path, indent):
    path, file = tmp_path / "a.json", tmp_path / "a.bin"
    file.write_bytes(b"12")
    sealed.write(path, RECORD, file, indent=indent)
    assert sealed.read(path, file) == {**RECORD, "at": [1, 2]}
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert sealed.read(path, file)["name"] == "Zoë"
    assert [one.name for one in sorted(tmp_path.iterdir())] == ["a.bin", "a.json"]


@pytest.mark.parametrize(
    "harm",
    [
        lambda text: text.replace("0.125", "0.126"),
        lambda text: text[:-9],
        lambda text: text.replace('"checksum"', '"check"'),
        lambda text: "[]",
        lambda text: "",
    ],
)
def test_what_was_damaged_or_edited_is_an_error(tmp_path, harm):
    path, file = tmp_path / "a.json", tmp_path / "a.bin"
    file.write_bytes(b"12")
    sealed.write(path, RECORD, file)
    good = path.read_text(encoding="utf8")
    path.write_text(harm(good), encoding="utf8")
    with pytest.raises(EvidenceError, match=r"a\.json can't be read .*: restore it, or make it again"):
        sealed.read(path, file)
    path.write_text(good, encoding="utf8")
    file.write_bytes(b"13")
    with pytest.raises(EvidenceError, match="its checksum is another"):
        sealed.read(path, file)
    file.unlink()
    with pytest.raises(EvidenceError, match="No such file"):
        sealed.read(path, file)


def test_a_record_in_another_ones_place_is_an_error(tmp_path):
    shutil.copy(DATA / "bench" / "swap-mary.json", tmp_path / "swap-anna.json")
    with pytest.raises(EvidenceError, match="has another file's name"):
        sealed.read(tmp_path / "swap-anna.json")


def test_whoever_reads_recorded_data_notices(tmp_path, monkeypatch):
    """The bench, the corpus and an autoencoder; rules and tables of chapters are read by the function itself."""
    shutil.copytree(DATA / "bench", tmp_path / "bench")
    shutil.copytree(DATA / "sae-smollm2", tmp_path / "sae")
    for name in ("corpus-smollm2.json", "corpus-smollm2.npy.xz"):
        shutil.copy(DATA / name, tmp_path)
    for path in (
        tmp_path / "bench" / "swap-mary.json",
        tmp_path / "sae" / sae.RECORD,
        tmp_path / "corpus-smollm2.json",
    ):
        path.write_text(json.dumps(json.loads(path.read_text(encoding="utf8")) | {"model": "another"}), encoding="utf8")
    monkeypatch.setattr(bench, "FOLDER", tmp_path / "bench")
    with pytest.raises(EvidenceError, match="its checksum is another"):
        bench.load()
    with pytest.raises(SaeError, match="its checksum is another"):
        sae.load(tmp_path / "sae")
    with pytest.raises(EvidenceError, match="its checksum is another"):
        corpus.read_corpus(tmp_path, "smollm2")
