"""A node that serves a model, for tests of programs that speak HTTP."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

MODEL = "SmolLM2-135M-Instruct.Q4_1"


@dataclass(frozen=True)
class Serving:
    """The HTTP API of a node."""

    url: str
    data_dir: str


@contextlib.contextmanager
def node_with(*flags: str) -> Iterator[Serving]:
    """Starts a node that serves SmolLM2, with these flags; the test is skipped where the binary or the model is not there."""
    folder = os.environ.get("PANGEA_TEST_MODELS") or pathlib.Path.home() / ".cache/pangea/test-models"
    model = pathlib.Path(folder) / f"{MODEL}.gguf"
    if not model.is_file():
        pytest.skip(f"SKIPPED: {model} is not there")
    with node_serving(model, *flags) as serving:
        yield serving


@contextlib.contextmanager
def node_serving(model: pathlib.Path, *flags: str) -> Iterator[Serving]:
    """Starts a node that serves the model in a file; the test is skipped where the binary is not there."""
    binary = os.environ.get("PANGEA_BIN")
    if not binary:
        pytest.skip("SKIPPED: PANGEA_BIN (a `pangea` binary) is not set")
    with tempfile.TemporaryDirectory() as directory:
        arguments = ["--ephemeral", "--no-mdns", "--listen", "/ip4/127.0.0.1/tcp/0", "--rpc-addr", "127.0.0.1:0"]
        arguments += ["--api-addr", "127.0.0.1:0", "--data-dir", directory, "--model", str(model), *flags]
        node = subprocess.Popen([binary, "node", *arguments], stderr=subprocess.PIPE, text=True)
        try:
            assert node.stderr
            said = []
            for line in node.stderr:
                said.append(line)
                if "Listening on" in line:
                    break
            else:
                raise RuntimeError("".join(said))
            facts = json.loads((pathlib.Path(directory) / "node.json").read_text())
            yield Serving(url=f"http://{facts['api']}", data_dir=directory)
        finally:
            node.terminate()
            node.communicate(timeout=60)
