"""Opening a model with transformers: load it in a format, see that nothing is missing, and have it proven."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from pytest_quant.engines import memory, placing
from pytest_quant.engines.libraries import require
from pytest_quant.engines.quiet import quiet
from pytest_quant.engines.shape import eligible, skeleton
from pytest_quant.engines.source import ModelSource
from pytest_quant.engines.tokens import Tokens
from pytest_quant.engines.transformers import PLACES, TransformersModel
from pytest_quant.errors import QuantError, Unsupported, UsageError
from pytest_quant.formats.backend import Asked, Backend
from pytest_quant.formats.format import Format
from pytest_quant.formats.proof import is_excluded, matching_nothing, prove
from pytest_quant.formats.storage import footprint
from pytest_quant.hardware import Device
from pytest_quant.placement import Placement

_OFFLOADING = (
    "offload",
    "on the CPU or the disk",
    "CPU or disk",
    "cpu/disk",
    "to disk",
    "automatic conversion",
    "meta device",
    "meta tensor",
)
"""What libraries say where a device map puts weights on no device that computes them, and they cannot."""
_CAUSAL = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")


def load(
    source: ModelSource,
    format: Format,
    backend: Backend,
    compute_dtype: str,
    device: Device,
    checkpoint: str | None = None,
    placement: Placement | None = None,
) -> TransformersModel:
    """Load, then prove (before the first forward). ``checkpoint`` is where the format was made beforehand,
    ``placement`` where the parts of the model go; without it all are on the first device.

    Raises :class:`UsageError` where there is no such model, :class:`Unsupported` where it does not fit or a library
    cannot run it, :class:`ProofFailed` where it is not in the format.
    """
    from transformers import AutoConfig, AutoTokenizer

    opening = {"revision": source.revision, "trust_remote_code": source.trust_remote_code}
    if placement is not None:
        placing.check(placement, device)
    folder: str | None = None
    try:
        with quiet():
            config = AutoConfig.from_pretrained(source.name, **opening)
            tokenizer = AutoTokenizer.from_pretrained(source.name, **opening)
            placed: dict[str, Any] = {}
            if placement is not None:
                folder = tempfile.mkdtemp(prefix="pytest-quant-offload-")
                placed = _placed(placement, config, source, folder)
            eligible = eligible_weights(config, trust_remote_code=source.trust_remote_code)
            asked = _asked(source, format, compute_dtype, device, eligible, checkpoint)
            model = backend.open(asked, partial(_from_pretrained, source, config, device, placed))
    except QuantError:
        _remove(folder)
        raise
    except Exception as error:
        _remove(folder)
        exhausted = memory.is_out_of_memory(error)
        if placement is not None and not exhausted and any(word in str(error) for word in _OFFLOADING):
            raise Unsupported(
                asked=f"{source.short} in {format.name} with {placement}",
                found=f"its library does not offload weights ({_first_line(error)})",
                needed="more memory, fewer bits, or a device_map without cpu and disk",
            ) from None
        if not exhausted:
            if checkpoint is not None:
                raise UsageError(
                    f"the checkpoint {checkpoint!r} cannot be loaded as {format.name}: {_first_line(error)}; restore "
                    f"it, or delete it and quantize the model again"
                ) from error
            if backend.support(format, device) is not None:
                raise UsageError(
                    f"the loader of {format.name} failed on {source.name!r}: {type(error).__name__}: "
                    f"{_first_line(error)}"
                ) from error
            raise UsageError(
                f"the model {source.name!r} cannot be loaded as {format.name}: {_first_line(error)}; give a folder or "
                f"a hub id with config.json, a tokenizer and *.safetensors (pickled weights are never opened)"
            ) from error
        memory.give_back(device)
        free = memory.free_bytes(device)
        raise Unsupported(
            asked=f"{source.short} in {format.name}",
            found=f"out of memory while loading it ({_first_line(error)})",
            needed=f"more than the {_gigabytes(free)} that are free on {device.name}",
        ) from None
    if model is None:
        raise UsageError(f"the loader of {format.name} gave no model: it must return it")
    model.eval()
    if folder is not None:
        weakref.finalize(model, _remove, folder)
    if placement is not None:
        placing.check_placed(model, placement, f"{source.short} in {format.name}")
    proof = prove(model, format, backend, eligible)
    try:
        loaded = TransformersModel(model, tokenizer, device, proof, format)
    except (RuntimeError, NotImplementedError) as error:
        if placement is None or isinstance(error, QuantError) or memory.is_out_of_memory(error):
            raise
        raise Unsupported(
            asked=f"{source.short} in {format.name} with {placement}",
            found=f"a forward that fails ({_first_line(error)})",
            needed="a device_map that does not cut through layers, one device for all, or another format",
        ) from None
    if backend.unpacks:
        loaded.proof = replace(loaded.proof, unpacked_bytes=footprint(model).total)
    return loaded


def ask(source: ModelSource, format: Format, compute_dtype: str, device: Device) -> Asked:
    """What a backend is asked for that is to make a checkpoint. :class:`UsageError` where there is no such model."""
    from transformers import AutoConfig

    try:
        with quiet():
            config = AutoConfig.from_pretrained(
                source.name, revision=source.revision, trust_remote_code=source.trust_remote_code
            )
            eligible = eligible_weights(config, trust_remote_code=source.trust_remote_code)
    except Exception as error:
        raise UsageError(f"the model {source.name!r} cannot be opened: {_first_line(error)}") from error
    if unknown := matching_nothing(format, eligible):
        raise UsageError(f"{format.name} excludes {', '.join(unknown)}, which matches no weight of {source.name!r}")
    return _asked(source, format, compute_dtype, device, eligible, None)


def _asked(
    source: ModelSource,
    format: Format,
    compute_dtype: str,
    device: Device,
    eligible: Mapping[str, int],
    checkpoint: str | None,
) -> Asked:
    excluded = tuple(name.rpartition(".")[0] for name in eligible if is_excluded(name, format))
    return Asked(
        model=source.name,
        format=format,
        compute_dtype=compute_dtype,
        place=PLACES[device.kind],
        revision=source.revision,
        trust_remote_code=source.trust_remote_code,
        excluded=excluded,
        checkpoint=checkpoint,
    )


def _placed(placement: Placement, config: Any, source: ModelSource, folder: str) -> dict[str, Any]:
    """What ``from_pretrained`` is told of where the parts go; ``folder`` takes what it has to write of them."""
    model = skeleton(config, trust_remote_code=source.trust_remote_code)
    placed: dict[str, Any] = {"device_map": placing.resolve(placement, model), "offload_folder": folder}
    if placement.max_memory:
        placed["max_memory"] = dict(placement.max_memory)
    return placed


def _remove(folder: str | None) -> None:
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)


def _from_pretrained(
    source: ModelSource, config: Any, device: Device, placed: Mapping[str, Any], name: str, **arguments: Any
) -> Any:
    """transformers' ``from_pretrained`` on the device; :class:`UsageError` where the files do not make the model."""
    from transformers import AutoModelForCausalLM

    given = {"device_map": {"": PLACES[device.kind]}, "use_safetensors": True, **placed, **arguments}
    if name == source.name:  # a checkpoint is elsewhere, and has no such revision
        given = {"revision": source.revision, **given}
    if "gguf_file" in given:  # which lacks much of a config: rope scaling, what is tied
        given = {"config": config, **given}
    model, loading = AutoModelForCausalLM.from_pretrained(
        name, output_loading_info=True, trust_remote_code=source.trust_remote_code, **given
    )
    _check_loaded(name, config, model, loading)
    return model


def require_torch_for(device: Device, asked: str) -> None:
    """:class:`Unsupported` where the installed torch cannot use the device that was detected."""
    import torch

    usable = {
        "cuda": torch.version.hip is None and torch.cuda.is_available(),
        "rocm": torch.version.hip is not None and torch.cuda.is_available(),
        "xpu": torch.xpu.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if not usable[device.kind]:
        raise Unsupported(
            asked=f"{asked} on {device.name}",
            found=f"torch {torch.__version__}, which cannot use it",
            needed=f"a build of torch for {device.kind} that the driver supports, or the device hidden from this run",
        )


def _check_loaded(name: str, config: Any, model: Any, loading: Mapping[str, Any]) -> None:
    """:class:`UsageError` where the files do not make the model: the library would fill it up with random weights."""
    for kind in ("missing_keys", "mismatched_keys"):
        if keys := [str(key) for key in loading.get(kind) or ()]:
            some = ", ".join(sorted(keys)[:3]) + (", ..." if len(keys) > 3 else "")
            raise UsageError(
                f"the files of {name!r} lack {len(keys)} of the model's weights ({kind.replace('_', ' ')}: {some}), "
                f"which would be random; restore the checkpoint"
            )
    claimed = getattr(config, "architectures", None) or []
    loaded = type(model).__name__
    if claimed and loaded not in claimed and not any(name.endswith(_CAUSAL) for name in claimed):
        raise UsageError(f"{name!r} is a {claimed[0]}, not a causal language model (it would be opened as {loaded})")


def eligible_weights(config: Any, *, trust_remote_code: bool = False) -> dict[str, int]:
    """Number of weights of each parameter that a matrix product uses, by name: all of two dimensions or
    more, embeddings and output head apart. From the architecture alone, on the meta device."""
    return eligible(skeleton(config, trust_remote_code=trust_remote_code))


def open_tokens(source: ModelSource) -> tuple[Tokens, int | None]:
    """The tokenizer of a model, and the longest sequence that its config names; no weight is read.

    Raises :class:`UsageError` where there is no such model, :class:`Unsupported` without transformers.
    """
    require(f"the tokenizer of {source.name!r}")
    from transformers import AutoConfig, AutoTokenizer

    opening = {"revision": source.revision, "trust_remote_code": source.trust_remote_code}
    try:
        with quiet():
            config = AutoConfig.from_pretrained(source.name, **opening)
            tokenizer = AutoTokenizer.from_pretrained(source.name, **opening)
    except Exception as error:
        raise UsageError(
            f"the tokenizer of {source.name!r} cannot be opened: {_first_line(error)}; give a folder or a hub id with "
            f"config.json and a tokenizer"
        ) from error
    longest = getattr(config.get_text_config(), "max_position_embeddings", None)
    return Tokens(tokenizer), int(longest) if longest else None


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).strip().splitlines()[0][:300]


def _gigabytes(count: int | None) -> str:
    return "unknown bytes" if count is None else f"{count / 1e9:.1f} GB"
