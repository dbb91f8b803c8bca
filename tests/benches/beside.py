"""Pangea beside NumPy and Ray, in one run: the ratios that the page "Measured" of the book shows.

Starts one node of one thread, and two of one thread each; then, round by round and in turn, the same f32 product on
NumPy (one and two threads), Ray (two one-thread workers: put, two tasks, get, stack), one node, and two nodes with fresh
and with resident operands. Needs numpy and, for its column, ray:

    python tests/benches/beside.py target/release/pangea [SIZE ...]

It only measures; it asserts nothing.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROUNDS = 5


def numpy_seconds(size: int, threads: int) -> float:
    """Median of three products in a process of its own, whose thread count OpenBLAS reads at its start."""
    code = (
        "import numpy as np, time, statistics as s, sys\n"
        f"n={size}; r=np.random.default_rng(1); a=r.random((n,n),np.float32); b=r.random((n,n),np.float32); a@b; t=[]\n"
        "for _ in range(3):\n  x=time.perf_counter(); a@b; t.append(time.perf_counter()-x)\n"
        "print(s.median(t))"
    )
    env = dict(os.environ, OPENBLAS_NUM_THREADS=str(threads))
    return float(subprocess.run([sys.executable, "-c", code], env=env, check=True, capture_output=True, text=True).stdout)


class RayPair:
    """Two Ray workers of one thread, each computing half of the rows."""

    def __init__(self) -> None:
        os.environ["OPENBLAS_NUM_THREADS"] = "1"
        import ray

        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error", object_store_memory=1 << 30)
        self.ray = ray
        self.half = ray.remote(lambda a, b: a @ b)

    def seconds(self, size: int) -> float:
        import numpy as np

        rng = np.random.default_rng(1)
        a, b = rng.random((size, size), np.float32), rng.random((size, size), np.float32)
        begin = time.perf_counter()
        right = self.ray.put(b)
        halves = [self.half.remote(self.ray.put(rows), right) for rows in np.split(a, 2)]
        np.vstack(self.ray.get(halves))
        return time.perf_counter() - begin


class Node:
    """A `pangea node` of one thread, with a data directory of its own."""

    def __init__(self, binary: str, folder: Path, *flags: str) -> None:
        folder.mkdir()
        arguments = ["--listen", "/ip4/127.0.0.1/tcp/0", "--rpc-addr", "127.0.0.1:0", "--no-mdns", "--no-api", "--open", "--threads", "1", "--max-memory", "2G"]
        log = (folder / "log").open("w")
        self.process = subprocess.Popen([binary, "node", "--data-dir", str(folder), *arguments, *flags], stderr=log, stdout=log)
        facts = folder / "node.json"
        while not facts.exists():
            if self.process.poll() is not None:
                raise SystemExit((folder / "log").read_text())
            time.sleep(0.01)
        read = json.loads(facts.read_text())
        self.rpc, self.address = read["rpc"], read["listening"][0]


def measured(binary: str, node: Node, *flags: str) -> dict:
    out = subprocess.run([binary, *flags, "--rpc", node.rpc, "--json"], check=True, capture_output=True, text=True)
    return json.loads(out.stdout)


def main() -> None:
    binary = str(Path(sys.argv[1]).resolve())
    sizes = [int(size) for size in sys.argv[2:]] or [1024, 2048, 4096]
    try:
        pair: RayPair | None = RayPair()
    except ImportError:
        print("SKIPPED: ray is not installed; its column is empty", file=sys.stderr)
        pair = None
    with tempfile.TemporaryDirectory() as folder:
        nodes = []
        try:
            alone = Node(binary, Path(folder) / "alone")
            helper = Node(binary, Path(folder) / "helper")
            nodes += [alone, helper]
            two = Node(binary, Path(folder) / "two", "--peer", helper.address)
            nodes.append(two)
            while not any(peer["state"] == "connected" for peer in measured(binary, two, "peers")):
                time.sleep(0.05)
            for size in sizes:
                table(binary, alone, two, pair, size)
        finally:
            for node in nodes:
                node.process.terminate()
            for node in nodes:
                node.process.wait()


def table(binary: str, alone: Node, two: Node, pair: RayPair | None, size: int) -> None:
    names = ["numpy 1 thread", "numpy 2 threads", "ray", "one node", "two nodes", "two, resident"]
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(ROUNDS):
        seconds["numpy 1 thread"].append(numpy_seconds(size, 1))
        seconds["numpy 2 threads"].append(numpy_seconds(size, 2))
        if pair:
            seconds["ray"].append(pair.seconds(size))
        for node, fresh, resident in [(alone, "one node", None), (two, "two nodes", "two, resident")]:
            rows = measured(binary, node, "bench", "matmul", "--size", str(size), "--runs", "1")
            seconds[fresh].append(next(row["seconds"] for row in rows if row["test"] == "cold"))
            if resident:
                seconds[resident].append(next(row["seconds"] for row in rows if row["test"] == "resident"))
    medians = {name: statistics.median(values) for name, values in seconds.items() if values}
    print(f"n = {size}, f32, medians of {ROUNDS}")
    for name, value in medians.items():
        print(f"  {name:16} {value * 1e3:9.1f} ms {2 * size**3 / value / 1e9:8.1f} GFLOP/s")
    of = medians.get
    for text, over, under in [
        ("two nodes / one node", "one node", "two nodes"),
        ("resident / one node", "one node", "two, resident"),
        ("one node / numpy, 1 thread", "numpy 1 thread", "one node"),
        ("two nodes / ray", "ray", "two nodes"),
        ("resident / ray", "ray", "two, resident"),
    ]:
        if (slow := of(over)) and (fast := of(under)):
            print(f"  {text:28} {slow / fast:5.2f} x")


if __name__ == "__main__":
    main()
