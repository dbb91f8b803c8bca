"""Pangea beside llama.cpp, in one run: the ratios that the page "Measured" of the book shows for language models.

Round by round and in turn: prompts of 128 tokens and 64 tokens of decoding with one and two threads (`pangea bench llm`
and `llama-bench`), decoding behind a context of 32 and of 512, and four concurrent streams over HTTP (`pangea node` and
`llama-server`). Needs llama.cpp's programs in a folder, and for a row of its own the same model in its fast format:

    python tests/benches/llm_beside.py target/release/pangea LLAMA_BIN_FOLDER MODEL.gguf [MODEL.Q4_0.gguf]

`--threads 2 --short` leaves out all but prompts and decoding with two threads. Whoever of the two is first in one round is second in the
next. A ratio is the median of the rounds' ratios, with their range. It only measures; it asserts nothing.
"""

from __future__ import annotations

import argparse
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


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Pangea beside llama.cpp, in one run.")
    parser.add_argument("pangea")
    parser.add_argument("folder", type=Path, help="llama.cpp's programs")
    parser.add_argument("model")
    parser.add_argument("fast", nargs="?", help="the same model as Q4_0")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", default="1,2", type=lambda list_: [int(n) for n in list_.split(",")])
    parser.add_argument("--short", action="store_true", help="prompts of 128 and decoding 64, nothing else")
    return parser.parse_args()


def main() -> None:
    args = parse()
    rows: dict[tuple[str, str], list[float]] = {}

    def note(engine: str, prefix: str, figures: dict[str, float]) -> None:
        for test, value in figures.items():
            rows.setdefault((f"{prefix}{test}", engine), []).append(value)

    with tempfile.TemporaryDirectory() as home:
        name = Path(args.model).stem
        node = [args.pangea, "node", "--model", args.model, "--threads", "2", "--ephemeral", "--no-mdns", "--data-dir", home]
        node += ["--listen", "/ip4/127.0.0.1/tcp/0", "--rpc-addr", "127.0.0.1:0", "--api-addr", "127.0.0.1:52499"]
        llama = [str(args.folder / "llama-server"), "-m", args.model, "-t", "2", "-np", str(STREAMS), "--port", "52498"]
        llama += ["-c", "8192"]

        def ours(prefix: str, *, threads: int, depth: int | None = None) -> None:
            note("pangea", prefix, pangea_bench(args.pangea, args.model, threads=threads, depth=depth))

        def theirs(prefix: str, *, threads: int, depth: int | None = None) -> None:
            note("llama.cpp", prefix, llama_bench(args.folder, args.model, threads=threads, depth=depth))

        for round_ in range(args.rounds):
            print(f"round {round_ + 1} of {args.rounds}", file=sys.stderr)
            in_turn = [ours, theirs] if round_ % 2 == 0 else [theirs, ours]
            for threads in args.threads:
                prefix = f"{threads} thr, "
                for measure in in_turn:
                    measure(prefix, threads=threads)
                if args.fast:
                    note("llama.cpp Q4_0", prefix, llama_bench(args.folder, args.fast, threads=threads))
            if args.short:
                continue
            for depth in (32, 512):
                for measure in in_turn:
                    measure(f"2 thr, at {depth}, ", threads=2, depth=depth)
            note("pangea", "2 thr, ", served(node, 52499, "/readyz", name))
            note("llama.cpp", "2 thr, ", served(llama, 52498, "/health", name))

    heading = f"tokens/s, medians of {args.rounds}"
    print(f"{heading:32}{'pangea':>10}{'llama.cpp':>11}{'ratio':>7}{'range':>12}{'Q4_0':>9}{'ratio':>7}{'range':>12}")
    for test in dict.fromkeys(test for test, _ in rows):
        ours_ = rows[test, "pangea"]
        line = f"{test:32}{statistics.median(ours_):10.1f}"
        for engine, width in (("llama.cpp", 11), ("llama.cpp Q4_0", 9)):
            if (test, engine) in rows:
                theirs_ = rows[test, engine]
                ratios = [a / b for a, b in zip(ours_, theirs_)]
                range_ = f"{min(ratios):.2f}–{max(ratios):.2f}"
                line += f"{statistics.median(theirs_):{width}.1f}{statistics.median(ratios):7.2f}{range_:>12}"
        print(line)


if __name__ == "__main__":
    main()
