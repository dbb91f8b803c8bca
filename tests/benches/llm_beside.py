"""Pangea beside llama.cpp, in one run: the ratios that the README shows for language models.

Round by round and in turn: prompts of 128 tokens and 64 tokens of decoding with one and two threads (`pangea bench llm`
and `llama-bench`), decoding behind a context of 32 and of 512, and four concurrent streams over HTTP (`pangea node` and
`llama-server`). Needs llama.cpp's programs in a folder, and for a row of its own the same model in its fast format:

    python tests/benches/llm_beside.py target/release/pangea LLAMA_BIN_FOLDER MODEL.gguf [MODEL.Q4_0.gguf]

It only measures; it asserts nothing.
"""

from __future__ import annotations

import concurrent.futures
import json
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path
from typing import Iterator

ROUNDS = 3
STREAMS = 4
STREAM_TOKENS = 96


def pangea_bench(pangea: str, model: str, *, threads: int, depth: int | None = None) -> dict[str, float]:
    """Tokens per second by test: pp128 and tg64, or tg64 behind a context."""
    shape = ["-p", "128", "-n", "64"] if depth is None else ["-p", "0", "-n", "64", "-d", str(depth)]
    command = [pangea, "bench", "llm", "--model", model, "--threads", str(threads), "-r", "1", *shape, "--json"]
    rows = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return {row["test"].split(" ")[0]: row["tokens_per_s"] for row in rows}


def llama_bench(folder: Path, model: str, *, threads: int, depth: int | None = None) -> dict[str, float]:
    """The same of llama-bench."""
    shape = ["-p", "128", "-n", "64"] if depth is None else ["-p", "0", "-n", "64", "-d", str(depth)]
    command = [str(folder / "llama-bench"), "-m", model, "-t", str(threads), "-r", "1", *shape, "-o", "json"]
    rows = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return {("pp128" if row["n_prompt"] else "tg64"): row["avg_ts"] for row in rows}


def get(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=5) as answer:
        body: bytes = answer.read()
        return body


@contextmanager
def server(command: list[str], port: int, ready: str) -> Iterator[str]:
    """A server on this machine from its start to its end."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    base = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                get(base + ready)
                break
            except OSError:
                time.sleep(0.05)
        yield base
    finally:
        process.terminate()
        process.wait(timeout=30)


def completion(base: str, model: str, seed: int) -> int:
    """One completion; the number of tokens that it gave."""
    body = {
        "model": model,
        "prompt": f"Once upon a time there were {seed + 2} ships that",
        "max_tokens": STREAM_TOKENS,
        "temperature": 0.8,
        "seed": seed,
        "ignore_eos": True,
    }
    request = urllib.request.Request(
        base + "/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=120) as answer:
        return int(json.load(answer)["usage"]["completion_tokens"])


def streams(base: str, model: str, count: int) -> float:
    """Tokens per second of so many requests at once, all together."""
    completion(base, model, 99)
    begin = time.perf_counter()
    with concurrent.futures.ThreadPoolExecutor(count) as pool:
        tokens = sum(pool.map(lambda seed: completion(base, model, seed), range(count)))
    return tokens / (time.perf_counter() - begin)


def served(command: list[str], port: int, ready: str, model: str) -> dict[str, float]:
    with server(command, port, ready) as base:
        return {f"{count} streams": streams(base, model, count) for count in (1, STREAMS)}


def main() -> None:
    pangea, folder, model = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
    fast = sys.argv[4] if len(sys.argv) > 4 else None
    rows: dict[tuple[str, str], list[float]] = {}

    def note(engine: str, prefix: str, figures: dict[str, float]) -> None:
        for test, value in figures.items():
            rows.setdefault((f"{prefix}{test}", engine), []).append(value)

    with tempfile.TemporaryDirectory() as home:
        name = Path(model).stem
        node = [pangea, "node", "--model", model, "--threads", "2", "--ephemeral", "--no-mdns", "--data-dir", home]
        node += ["--listen", "/ip4/127.0.0.1/tcp/0", "--rpc-addr", "127.0.0.1:0", "--api-addr", "127.0.0.1:52499"]
        llama = [str(folder / "llama-server"), "-m", model, "-t", "2", "-np", str(STREAMS), "--port", "52498", "-c", "8192"]
        for round_ in range(ROUNDS):
            print(f"round {round_ + 1} of {ROUNDS}", file=sys.stderr)
            for threads in (1, 2):
                prefix = f"{threads} thr, "
                note("pangea", prefix, pangea_bench(pangea, model, threads=threads))
                note("llama.cpp", prefix, llama_bench(folder, model, threads=threads))
                if fast:
                    note("llama.cpp Q4_0", prefix, llama_bench(folder, fast, threads=threads))
            for depth in (32, 512):
                note("pangea", f"2 thr, at {depth}, ", pangea_bench(pangea, model, threads=2, depth=depth))
                note("llama.cpp", f"2 thr, at {depth}, ", llama_bench(folder, model, threads=2, depth=depth))
            note("pangea", "2 thr, ", served(node, 52499, "/readyz", name))
            note("llama.cpp", "2 thr, ", served(llama, 52498, "/health", name))

    print(f"{'tokens/s, medians of ' + str(ROUNDS):32}{'pangea':>10}{'llama.cpp':>11}{'ratio':>7}{'Q4_0':>9}{'ratio':>7}")
    for test in dict.fromkeys(test for test, _ in rows):
        ours = statistics.median(rows[test, "pangea"])
        line = f"{test:32}{ours:10.0f}"
        for engine, width in (("llama.cpp", 11), ("llama.cpp Q4_0", 9)):
            if (test, engine) in rows:
                theirs = statistics.median(rows[test, engine])
                line += f"{theirs:{width}.0f}{ours / theirs:7.2f}"
        print(line)


if __name__ == "__main__":
    main()
