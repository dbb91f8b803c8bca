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
    with tempfile.TemporaryDirectory() as directory:
        node = Node(pathlib.Path(directory), "--ephemeral", "--model", str(model), *flags)
        try:
            yield Serving(url=node.url, data_dir=directory)
        finally:
            node.stop()


class Node:
    """A node with a folder of its own, on free ports of this machine."""

    def __init__(self, folder: pathlib.Path, *flags: str) -> None:
        binary = os.environ.get("PANGEA_BIN")
        if not binary:
            pytest.skip("SKIPPED: PANGEA_BIN (a `pangea` binary) is not set")
        arguments = ["--no-mdns", "--listen", "/ip4/127.0.0.1/tcp/0", "--rpc-addr", "127.0.0.1:0", "--api-addr", "127.0.0.1:0"]
        facts = folder / "node.json"
        facts.unlink(missing_ok=True)
        # A pipe that nobody reads would stop a node that says much.
        self.log = folder / "node.log"
        with self.log.open("a") as log:
            command = [binary, "node", *arguments, "--data-dir", str(folder), *flags]
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        while not facts.exists():
            if self.process.poll() is not None:
                raise RuntimeError(self.log.read_text())
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(0.02)
        said = json.loads(facts.read_text())
        self.url, self.address = f"http://{said['api']}", said["reachable"]
        self.data_dir = str(folder)

    def stop(self) -> None:
        """Ends the node in order."""
        self.process.terminate()
        self.process.wait(60)

    def kill(self) -> None:
        """Ends the node without letting it say so."""
        self.process.kill()
        self.process.wait(60)
