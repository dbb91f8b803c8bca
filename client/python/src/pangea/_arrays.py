"""NumPy arrays as the bytes of tensors, and errors for arrays that cannot be tensors. Never talks to a node."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ._errors import InvalidInput, UnsupportedDType

Array = npt.NDArray[Any]

_NAMES = {"float16": "f16", "float32": "f32", "float64": "f64", "int8": "i8", "int32": "i32"}


def operand(name: str, array: npt.ArrayLike, done: str, dtypes: tuple[str, ...], note: str = "") -> Array:
    """`array` as a row-major, little-endian matrix; copied only where its layout differs.

    `dtypes`: those of which an operand can be `done` (such as "multiplied"). `note`: ends the refusal of others.
    """
    matrix = np.asarray(array)
    if matrix.dtype.name not in dtypes:
        raise UnsupportedDType(
            f"{name} has dtype {matrix.dtype}, which cannot be {done} here; convert it with "
            f".astype() to one of {', '.join(dtypes)}{note}"
        )
    if matrix.ndim == 1:
        raise InvalidInput(
            f"{name} has one dimension; make it a row with {name}[None, :] or a column with {name}[:, None]"
        )
    if matrix.ndim != 2:
        raise InvalidInput(
            f"{name} has {matrix.ndim} dimensions and a matrix has two; pass stacked matrices one by one"
        )
    return np.ascontiguousarray(matrix, dtype=matrix.dtype.newbyteorder("<"))


def wire_dtype(matrix: Array) -> str:
    """Name of an operand's dtype on the wire."""
    return _NAMES[matrix.dtype.name]


def numpy_dtype(wire: str) -> np.dtype[Any]:
    """NumPy dtype of a result, by its name on the wire."""
    for name, known in _NAMES.items():
        if known == wire:
            return np.dtype(name).newbyteorder("<")
    raise UnsupportedDType(f"the result has dtype {wire}, which NumPy does not have")
