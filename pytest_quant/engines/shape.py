"""The shape of a model from its config alone: transformers builds it without weights, on torch's meta device.

What layers keep is not read from the config's many words for it (grouped queries, latents, shared layers, windows),
but seen: a few tokens go through the model that has no weights, into the cache that the library makes for it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pytest_quant.engines.libraries import require
from pytest_quant.engines.quiet import quiet
from pytest_quant.errors import UsageError
from pytest_quant.roofline.shape import KVLayer, ModelShape

if TYPE_CHECKING:
    import torch

_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
_USED = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_top_k", "top_k_experts", "moe_k", "top_k")
_KEEPING = ("DynamicLayer", "DynamicSlidingWindowLayer", "DynamicIndexedLayer")
_MIXED = ("LinearAttentionAndFullAttentionLayer", "LinearAttentionAndSlidingWindowAttentionLayer")
_KEEPING_NOTHING = ("DummyLayer", "LinearAttentionLayer")
_TOKENS = (2, 3)


def read(name: str, revision: str | None = None, trust_remote_code: bool = False) -> ModelShape:
    """The shape of the model in a folder or of a hub id, of which only the config is read. :class:`UsageError` where
    there is none, or none of a causal language model; :class:`Unsupported` without transformers."""
    require(f"the config of {name!r}")
    from transformers import AutoConfig

    try:
        with quiet():
            config = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=trust_remote_code)
    except Exception as error:  # what the hub's client, the parser and code of the model's own raise
        raise UsageError(
            f"the config of {name!r} cannot be read: {_first_line(error)}; give a folder with config.json, or a hub id "
            f"that can be reached or is in the cache"
        ) from error
    try:
        return shape_of(config, trust_remote_code)
    except Exception as error:
        raise UsageError(
            f"{name!r} is no causal language model that transformers can build: {_first_line(error)}"
        ) from error


def shape_of(config: Any, trust_remote_code: bool = False) -> ModelShape:
    """The shape of the model that a transformers config describes; raises what the library raises where it cannot
    build a causal language model of it."""
    import torch

    model = skeleton(config, trust_remote_code=trust_remote_code)
    text = model.config.get_text_config()
    found = dict(_matrices(model))
    quantizable = sum(matrix.numel() for matrix, _ in found.values())
    head = model.get_output_embeddings()
    head_weight = getattr(head, "weight", None)
    tables = {id(module.weight): module.weight for module in model.modules() if isinstance(module, torch.nn.Embedding)}
    experts, used = _first(text, _EXPERTS), _first(text, _USED)
    routed = sum(matrix.numel() for name, (matrix, _) in found.items() if _is_routed(name)) if experts else 0
    return ModelShape(
        quantizable=quantizable,
        rest=sum(parameter.numel() for parameter in model.parameters()) - quantizable,
        table=sum(table.numel() for table in tables.values() if table is not head_weight),
        head=0 if head_weight is None else head_weight.numel(),
        routed=routed,
        idle=_idle(model, found),
        experts=experts if experts and routed else 1,
        experts_used=min(used or 1, experts) if experts and routed else 1,
        kv=_kv(model, text),
        vocabulary=_first(text, ("vocab_size",)),
        hidden=_first(text, ("hidden_size",)),
        layers=_first(text, ("num_hidden_layers",)),
        longest=_first(text, ("max_position_embeddings",)),
        rows=_rows(found),
    )


def skeleton(config: Any, *, trust_remote_code: bool = False) -> Any:
    """The causal language model of a config on the meta device, as it is before anything quantizes it."""
    import torch
    from transformers import AutoModelForCausalLM

    plain = type(config).from_dict({k: v for k, v in config.to_dict().items() if k != "quantization_config"})
    with torch.device("meta"), quiet():
        return AutoModelForCausalLM.from_config(plain, trust_remote_code=trust_remote_code)


def eligible(model: Any) -> dict[str, int]:
    """Number of weights of each parameter that a matrix product uses, by name: all of two dimensions or more,
    embeddings and output head apart."""
    return {name: matrix.numel() for name, (matrix, _) in _matrices(model)}


def _matrices(model: Any) -> Iterator[tuple[str, tuple[torch.Tensor, int]]]:
    """Each such parameter, with the length of its rows: the inputs of the product."""
    import torch

    head = model.get_output_embeddings()
    for module_name, module in model.named_modules():
        if module is head or isinstance(module, torch.nn.Embedding):
            continue
        transposed = type(module).__name__ == "Conv1D"  # GPT-2's, which is a linear layer
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.ndim >= 2:
                yield f"{module_name}.{name}", (parameter, parameter.shape[0 if transposed else -1])


def _rows(found: dict[str, tuple[torch.Tensor, int]]) -> tuple[tuple[int, int], ...]:
    counted: Counter[int] = Counter()
    for matrix, length in found.values():
        counted[length] += matrix.numel() // length
    return tuple(sorted(counted.items()))


def _is_routed(name: str) -> bool:
    return ".experts." in name and "shared" not in name


def _idle(model: Any, found: dict[str, tuple[torch.Tensor, int]]) -> int:
    """Weights outside of the model of text: towers that see or hear."""
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else None
    inside = {id(parameter) for parameter in decoder.parameters()} if decoder is not None else set()
    if not any(id(matrix) in inside for matrix, _ in found.values()):
        return 0
    return sum(matrix.numel() for matrix, _ in found.values() if id(matrix) not in inside)


def _kv(model: Any, text: Any) -> tuple[KVLayer, ...]:
    """What each layer keeps of a token; empty where the library keeps it in another way or the model cannot be run
    without weights."""
    few, more = (_kept_after(model, tokens) for tokens in _TOKENS)
    if few is None or more is None or len(few) != len(more):
        return ()
    kinds = [type(layer).__name__ for layer in more]
    if not all(kind in (*_KEEPING, *_MIXED, *_KEEPING_NOTHING) for kind in kinds):
        return ()
    found = []
    for number, (kind, before, after) in enumerate(zip(kinds, few, more, strict=True)):
        if kind not in _KEEPING_NOTHING:
            values = (_numbers(after) - _numbers(before)) // (_TOKENS[1] - _TOKENS[0])
            found.append(KVLayer(values, _width(text, number, after), getattr(after, "sliding_window", None)))
    return tuple(found)


def _kept_after(model: Any, tokens: int) -> list[Any] | None:
    """The layers of the cache after so many tokens."""
    import torch
    from transformers import DynamicCache

    # Routing by index needs values, which there are none of; this one multiplies with all that may be chosen.
    for experts in (None, "batched_mm"):
        try:
            if experts is not None:
                model.set_experts_implementation(experts)
            cache = DynamicCache(config=model.config)
            with torch.inference_mode(), torch.device("meta"), quiet():
                out = model(torch.zeros((1, tokens), dtype=torch.long), past_key_values=cache, use_cache=True)
            kept = getattr(out, "past_key_values", None)
            return None if kept is None else list(kept.layers)
        except Exception:  # whatever a model of any architecture raises that has no weights
            continue
    return None


def _numbers(layer: Any) -> int:
    """Of what a layer of the cache holds, all that could be of tokens."""
    import torch

    return sum(value.numel() for value in vars(layer).values() if isinstance(value, torch.Tensor))


def _width(text: Any, number: int, layer: Any) -> int:
    """Query heads times the mean length of a head's keys and values."""
    try:
        own = text.per_layer_config[number]
    except (AttributeError, IndexError, TypeError):
        own = text
    heads = _first(own, ("num_attention_heads",)) or int(layer.keys.shape[1])
    if _first(own, ("kv_lora_rank",)):  # latents are kept, of which keys and values are made
        nope, rope = _first(own, ("qk_nope_head_dim",)) or 0, _first(own, ("qk_rope_head_dim",)) or 0
        return heads * (nope + rope + (_first(own, ("v_head_dim",)) or 0)) // 2
    return heads * (int(layer.keys.shape[-1]) + int(layer.values.shape[-1])) // 2


def _first(config: Any, names: tuple[str, ...]) -> int | None:
    """The first of the config's numbers of these names that is one."""
    values = (getattr(config, name, None) for name in names)
    return next(
        (value for value in values if isinstance(value, int) and not isinstance(value, bool) and value > 0), None
    )


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).strip().splitlines()[0][:300]
