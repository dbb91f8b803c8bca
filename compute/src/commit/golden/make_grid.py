"""Makes grid.txt: what NumPy gives for canonical-grid/1, cell by cell and as digests.

python3 -m venv venv && venv/bin/pip install numpy && venv/bin/python make_grid.py
"""

import hashlib
import pathlib

import numpy as np

HERE = pathlib.Path(__file__).parent


def cells(values: np.ndarray) -> np.ndarray:
    half = values.astype(np.float16).astype(np.float32)
    half = np.where(np.isnan(half), np.float32(0), half)
    half = np.where(np.isposinf(half), np.float32(100), half)
    half = np.where(np.isneginf(half), np.float32(-100), half)
    grid = np.round(half * np.float32(64)) / np.float32(64)
    return np.clip(grid, np.float32(-100), np.float32(100)).astype("<f2")


def special() -> np.ndarray:
    """Edges of cells, of the clamp and of f16, their neighbours, and numbers that are none."""
    edges = [k / 128 for k in range(-40, 41)]
    edges += [0.0, -0.0, 1e-8, -1e-8, 6e-8, 5.96e-8, 32.0, 31.99, 15.9921875, 16.0078125, 64.03125, 63.984375]
    edges += [99.99, 99.96875, 100.0, 100.03125, 101.0, 1000.0, 65503.9, 65504.0, 65519.9, 65520.0, 1e30, 3.4e38]
    values = np.array(edges + [-x for x in edges], dtype=np.float32)
    near = np.concatenate(
        [values, np.nextafter(values, np.float32(np.inf)), np.nextafter(values, np.float32(-np.inf))]
    )
    none = np.array([0x7F800000, 0xFF800000, 0x7FC00000, 0xFFC00001, 0x7F800001], dtype=np.uint32).view(np.float32)
    return np.concatenate([near, none])


def main() -> None:
    np.seterr(over="ignore", invalid="ignore")
    lines = []
    for bits, cell in zip(special().view(np.uint32), cells(special()).view(np.uint16)):
        lines.append(f"cell {bits:08x} {cell:04x}")
    spread = (np.arange(1 << 20, dtype=np.uint64) * 2654435761 % (1 << 32)).astype(np.uint32)
    for name, values in {
        "none": np.array([], dtype=np.float32),
        "every-half": np.arange(1 << 16, dtype=np.uint32).astype(np.uint16).view(np.float16).astype(np.float32),
        "spread": spread.view(np.float32),
        "small": (np.arange(1 << 16, dtype=np.float32) - (1 << 15)) / np.float32(1024),
    }.items():
        lines.append(f"digest {name} {hashlib.sha256(cells(values).tobytes()).hexdigest()}")
    (HERE / "grid.txt").write_text("\n".join(lines) + "\n")


main()
