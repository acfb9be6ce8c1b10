"""Opening a model with vLLM: start its process, and have it proven before it counts."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pytest_quant.engines.loading import eligible_weights
from pytest_quant.engines.quiet import quiet
from pytest_quant.engines.source import ModelSource
from pytest_quant.engines.vllm import arguments, lengths, proof, stored, support
from pytest_quant.engines.vllm.environment import environment
from pytest_quant.engines.vllm.model import VllmModel
from pytest_quant.engines.vllm.process import EngineError, EngineProcess
from pytest_quant.errors import UsageError
from pytest_quant.formats.format import Format
from pytest_quant.hardware import Device


def load(
    source: ModelSource,
    format: Format,
    compute_dtype: str,
    device: Device,
    checkpoint: str | None = None,
    engine_args: Mapping[str, Any] | None = None,
    *,
    is_reference: bool = False,
) -> VllmModel:
    """Start an engine with the model in the format, and prove it; an engine that fails is ended.

    Raises :class:`UsageError` where there is no such model or an argument is wrong, :class:`Unsupported` where vLLM,
    the device or its memory cannot run it, :class:`ProofFailed` where it is not in the format.
    """
    if (absent := support.missing(device)) is not None:
        raise absent
    if format.from_checkpoint and checkpoint is None:
        raise UsageError(f"{format.name} is loaded from a checkpoint, and none was given: give its folder or hub id")
    given = arguments.arguments(
        source, format, compute_dtype, device, checkpoint, engine_args, is_reference=is_reference
    )
    config, tokenizer, ends, eligible = _described(source)
    tensors = _tensors(checkpoint or source.name, None if checkpoint else source.revision)
    surroundings = environment(os.environ, device.kind, _threads(device))
    told = None if checkpoint is None else _config(checkpoint, trust_remote_code=source.trust_remote_code)
    if (length := lengths.room_for_all_positions(config, engine_args or {}, told)) is not None:
        given["max_model_len"] = length
        surroundings |= lengths.ALLOWED
    process = EngineProcess(surroundings)
    try:
        facts = _started(process, given, source, format, device)
        if tensors is None:  # the engine may have fetched them
            tensors = _tensors(checkpoint or source.name, None if checkpoint else source.revision)
        found = proof.prove(
            facts["workers"],
            format,
            eligible,
            dtype=given["dtype"],
            kv_cache_dtype=given.get("kv_cache_dtype"),
            tensors=tensors,
            tied=bool(getattr(config.get_text_config(), "tie_word_embeddings", False)),
            on_cpu=device.kind == "cpu",
        )
        model = VllmModel(process, facts, config, tokenizer, device, found, ends)
        _settle(model)
    except BaseException:
        process.close()
        raise
    return model


def _started(
    process: EngineProcess, given: Mapping[str, Any], source: ModelSource, format: Format, device: Device
) -> Mapping[str, Any]:
    """What the engine tells once the model is loaded."""
    try:
        facts: Mapping[str, Any] = process.call("start", dict(given))
    except MemoryError as error:
        advice = "a greater gpu_memory_utilization or a smaller max_model_len in engine_args may help"
        raise MemoryError(f"vLLM on {device.name}: {error}; {advice}") from None
    except EngineError as error:
        raise UsageError(f"vLLM cannot start {source.short} in {format.name}: {error.told}") from error
    return facts


def _settle(model: VllmModel) -> None:
    """One short scoring: some kernels are made or repack their weights at the first."""
    import numpy as np

    model.token_nll(np.zeros((1, 2), dtype=np.int64))


def _described(source: ModelSource) -> tuple[Any, Any, frozenset[int], dict[str, int]]:
    """Config, tokenizer, end tokens and eligible weights of the base model; :class:`UsageError` where there is none."""
    from transformers import AutoConfig, AutoTokenizer, GenerationConfig

    opening = {"revision": source.revision, "trust_remote_code": source.trust_remote_code}
    try:
        with quiet():
            config = AutoConfig.from_pretrained(source.name, **opening)
            tokenizer = AutoTokenizer.from_pretrained(source.name, **opening)
            eligible = eligible_weights(config, trust_remote_code=source.trust_remote_code)
    except Exception as error:  # what the hub's client, the parser and code of the model's own raise
        first = (str(error) or type(error).__name__).strip().splitlines()[0][:300]
        raise UsageError(
            f"the model {source.name!r} cannot be opened: {first}; give a folder or a hub id with config.json and a "
            f"tokenizer"
        ) from error
    try:
        with quiet():
            end = GenerationConfig.from_pretrained(source.name, revision=source.revision).eos_token_id
    except (OSError, ValueError):  # a model need not have one
        end = None
    end = tokenizer.eos_token_id if end is None else end
    ends = frozenset(() if end is None else end if isinstance(end, list) else [end])
    return config, tokenizer, ends, eligible


def _config(checkpoint: str, *, trust_remote_code: bool) -> Any:
    """Of what is loaded instead of the base model; ``None`` where it has none that transformers reads."""
    from transformers import AutoConfig

    with contextlib.suppress(Exception), quiet():  # what is wrong with it the engine says better
        return AutoConfig.from_pretrained(checkpoint, trust_remote_code=trust_remote_code)
    return None


def _tensors(name: str, revision: str | None) -> dict[str, stored.Tensor] | None:
    """The tensors of a model's files, where they are at hand. :class:`UsageError` where a folder's are broken."""
    folder = Path(name)
    if not folder.is_dir():
        from transformers.utils import cached_file

        try:
            config = cached_file(name, "config.json", revision=revision)
        except OSError:
            return None
        if config is None:
            return None
        folder = Path(config).parent
        if not all(path.exists() for path in stored.files(folder)):
            return None
    return stored.read(folder) or None


def _threads(device: Device) -> int | None:
    """Threads that torch computes with here, for an engine on the same CPU to use as many."""
    if device.kind != "cpu":
        return None
    from pytest_quant.engines.timing import threads

    return threads()
