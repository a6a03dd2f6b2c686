"""Triton kernels on a machine without a GPU, unmodified, in Triton's own interpreter; on one with a GPU they run there.

The interpreter keeps bfloat16 and 8-bit floats as raw integers in numpy and forgets it (in all versions up to 3.9 at least):
arithmetic, comparisons and dots use the bit patterns as numbers, casts between them and other types do so too, float32 ->
bfloat16 truncates and float32 -> E4M3 rounds wrongly. None of it raises. `_repair` replaces these operations: values go through
torch, which rounds as the hardware does. Reductions over raw bytes are not repaired but refused, and so is inline assembly
unless it only copies registers (the fence that keeps a compiler from moving work across it).
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
from types import ModuleType
from typing import Any

import numpy as np
import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
VARIABLE = "TRITON_INTERPRET"


def why_not() -> str | None:
    """Why kernels cannot run here, or None."""
    return None if importlib.util.find_spec("triton") else "triton is not installed (pip install triton==3.7.1)"


def load(op: str) -> ModuleType:
    """`kernels/<op>/triton_kernel.py`. Without a GPU the interpreter must be on (fixture `triton_kernel`)."""
    if DEVICE == "cpu":
        if os.environ.get(VARIABLE) != "1":
            raise RuntimeError(f"{VARIABLE} must be 1 while kernels are loaded and run")
        language = importlib.import_module("triton.language")
        if type(language.zeros).__name__ == "JITFunction":
            raise RuntimeError(f"triton was imported before {VARIABLE} was set: its own functions cannot be interpreted any more")
        _repair()
    return importlib.import_module(f"comfyui_qvg.kernels.{op}.triton_kernel")


def _repair() -> None:
    """Replace what is wrong in the interpreter's builder, once."""
    interpreter: Any = importlib.import_module("triton.runtime.interpreter")
    builder = interpreter.InterpreterBuilder
    if getattr(builder, "qvg_repaired", False):
        return
    builder.qvg_repaired = True
    for name, method in _methods(interpreter).items():
        setattr(builder, name, method)
    for name in ("exp", "exp2", "log", "log2", "sqrt", "rsqrt", "fabs", "floor", "ceil", "sin", "cos", "erf"):
        setattr(builder, f"create_{name}", _unary(interpreter, getattr(builder, f"create_{name}")))
    reduce = interpreter.ReduceOps.apply_impl

    def refuse_raw(self: Any, operands: Any) -> Any:
        if any(_torch_type(operand.dtype.scalar) is not None for operand in operands):
            raise NotImplementedError("a reduction over bfloat16 or 8-bit floats is not interpreted; convert to float32 first")
        return reduce(self, operands)

    interpreter.ReduceOps.apply_impl = refuse_raw


def _torch_type(scalar: Any) -> torch.dtype | None:
    """The torch type of a Triton scalar that numpy holds as raw integers; None for all that numpy knows itself."""
    names = {"bf16": torch.bfloat16, "fp8e4nv": torch.float8_e4m3fn, "fp8e5": torch.float8_e5m2}
    return names.get(scalar.name)


def _values(handle: Any) -> Any:
    """A handle's numbers: float32 where numpy holds raw integers, else as they are."""
    dtype = _torch_type(handle.dtype.scalar)
    if dtype is None:
        return handle.data
    raw = np.ascontiguousarray(handle.data)
    signed = torch.from_numpy(raw.view(np.int16 if raw.itemsize == 2 else np.int8).copy())
    return signed.view(dtype).float().numpy().reshape(np.shape(handle.data))


def _stored(values: Any, scalar: Any, numpy_type: Any) -> Any:
    """Numbers as the interpreter holds them: nearest, ties to even; 8-bit floats saturate as the hardware's conversion does."""
    dtype = _torch_type(scalar)
    if dtype is None:
        return np.asarray(values).astype(numpy_type)
    array = np.ascontiguousarray(values)
    numbers = torch.from_numpy(array.astype(np.int64) if array.dtype.kind in "uib" else array.copy())
    if dtype != torch.bfloat16:
        numbers = numbers.float().clamp(-torch.finfo(dtype).max, torch.finfo(dtype).max)
    raw = numbers.to(dtype).view(torch.int16 if dtype == torch.bfloat16 else torch.int8).numpy()
    return raw.view(numpy_type).reshape(np.shape(values))


def _methods(interpreter: Any) -> dict[str, Any]:
    handle, numpy_type, too_wide = interpreter.TensorHandle, interpreter._get_np_dtype, interpreter._validate_np_data_size
    language: Any = importlib.import_module("triton.language")

    def cast(self: Any, source: Any, target: Any, *_: Any) -> Any:
        return handle(_stored(_values(source), target.scalar, numpy_type(target)), target.scalar)

    def binary(self: Any, left: Any, right: Any, op: Any) -> Any:
        scalar = left.dtype.scalar
        result = op(_values(left), _values(right))
        if _torch_type(scalar) is not None:
            is_truth = result.dtype == np.bool_
            return handle(result, language.int1) if is_truth else handle(_stored(result, scalar, numpy_type(scalar)), scalar)
        return handle(result if too_wide(result, scalar) else result.astype(numpy_type(scalar)), scalar)

    def fma(self: Any, x: Any, y: Any, z: Any) -> Any:
        scalar = z.dtype.scalar
        return handle(_stored(_values(x) * _values(y) + _values(z), scalar, numpy_type(scalar)), scalar)

    def dot(self: Any, a: Any, b: Any, d: Any, *_: Any) -> Any:
        x, y, scalar = _values(a), _values(b), d.dtype.scalar
        if d.data.dtype == np.int32:
            # Exact in float64, and fast.
            product = np.rint(np.matmul(x.astype(np.float64), y.astype(np.float64))).astype(np.int32)
        else:
            product = np.matmul(x.astype(np.float32), y.astype(np.float32)).astype(d.data.dtype)
        return handle(product + d.data, scalar)

    def assembly(self: Any, code: str, constraints: str, operands: Any, types: Any, *_: Any) -> Any:
        copies = re.fullmatch(r"\s*(mov\.b\d+ \$\d+, \$\d+;\s*)+", code)
        if not copies or len(operands) != 1 or (isinstance(types, (list, tuple)) and len(types) != 1):
            raise NotImplementedError(f"inline assembly is not interpreted unless it copies one operand: {code!r}")

        class Result:
            def get_result(self, index: int) -> Any:
                return operands[0]

        return Result()

    def constant(self: Any, value: float) -> Any:
        return handle(_stored(np.array([value], np.float32), language.bfloat16, np.uint16), language.bfloat16)

    casts = ("cast_impl", "create_fp_to_fp")
    return {
        "get_bf16": constant,
        **dict.fromkeys(casts, cast),
        "binary_op": binary,
        "create_fma": fma,
        "create_dot": dot,
        "create_inline_asm": assembly,
    }


def _unary(interpreter: Any, method: Any) -> Any:
    language: Any = importlib.import_module("triton.language")

    def repaired(self: Any, operand: Any) -> Any:
        scalar = operand.dtype.scalar
        if _torch_type(scalar) is None:
            return method(self, operand)
        result = method(self, interpreter.TensorHandle(_values(operand), language.float32))
        return interpreter.TensorHandle(_stored(result.data, scalar, interpreter._get_np_dtype(scalar)), scalar)

    return repaired
