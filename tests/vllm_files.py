"""Checkpoints of compressed-tensors, made by rounding to nearest: what llm-compressor writes, for tests without it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path


def save_rounded(base: Path, folder: Path, kind: str = "int", weight_dtype: str = "bfloat16") -> Path:
    """W8A8 of the model in ``base``: each row of a linear layer has a scale, each token its own at work."""
    import torch
    from safetensors.torch import load_file, save_file

    folder.mkdir(parents=True, exist_ok=True)
    most = 127.0 if kind == "int" else 448.0
    found = {}
    for name, tensor in load_file(base / "model.safetensors").items():
        if name.endswith("_proj.weight"):
            scale = tensor.float().abs().amax(1, keepdim=True).clamp_min(1e-12) / most
            scaled = (tensor.float() / scale).clamp(-most, most)
            found[name] = scaled.round().to(torch.int8) if kind == "int" else scaled.to(torch.float8_e4m3fn)
            found[name.replace(".weight", ".weight_scale")] = scale.to(getattr(torch, weight_dtype))
        else:
            found[name] = tensor
    save_file(found, folder / "model.safetensors", metadata={"format": "pt"})
    for path in base.iterdir():
        if path.is_file() and not path.name.endswith(".safetensors"):
            shutil.copy(path, folder / path.name)
    config = json.loads((base / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "format": "int-quantized" if kind == "int" else "float-quantized",
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": {"num_bits": 8, "type": kind, "strategy": "channel", "symmetric": True, "dynamic": False},
                "input_activations": {
                    "num_bits": 8,
                    "type": kind,
                    "strategy": "token",
                    "symmetric": True,
                    "dynamic": True,
                },
            }
        },
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder
