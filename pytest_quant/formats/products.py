"""What a layer really multiplies: libraries may unpack their weights first, or fall back in silence."""

from __future__ import annotations

import re
from typing import Any

_MATRIX = re.compile(r"mm|matmul|linear|f8f8|out_dtype|int4pack")


def products(weight: Any, rows: int) -> str:
    """The matrix products that ``rows`` rows of input through ``weight`` (``(out, in)``, of any tensor subclass) end
    in, with the types of their two factors: ``_int_mm(int8, int8)`` or ``mm(bfloat16, bfloat16)``; joined by ``+``
    where there are more. Raises what the library raises."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    seen: list[str] = []

    class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
        supports_higher_order_operators = True  # out_dtype(mm) is one; refusing it would make torchao fall back

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if any(hasattr(kind, "__tensor_flatten__") for kind in types):
                return NotImplemented  # the subclass unpacks itself first, and what it then calls comes here again
            result = func(*args, **(kwargs or {}))
            name = str(func).removeprefix("aten.").removesuffix(".default")
            if _MATRIX.search(name):
                factors = [str(value.dtype).removeprefix("torch.") for value in args if isinstance(value, torch.Tensor)]
                seen.append(f"{name}({', '.join(factors[:2])})")
            return result

    inputs = torch.ones(rows, weight.shape[-1], dtype=weight.dtype, device=weight.device)
    with torch.no_grad(), Watch():  # type: ignore[no-untyped-call]
        torch.nn.functional.linear(inputs, weight)
    return " + ".join(dict.fromkeys(seen))
