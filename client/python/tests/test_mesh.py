"""A mesh of three nodes and two models, used through every dialect's own SDK, curl and a program that people install, while the node of
one model is killed and returns."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest
from serving import MODEL, Node

openai = pytest.importorskip("openai", reason="SKIPPED: the openai package is not installed")
anthropic = pytest.importorskip("anthropic", reason="SKIPPED: the anthropic package is not installed")
ollama = pytest.importorskip("ollama", reason="SKIPPED: the ollama package is not installed")

OTHER = "gemma-3-270m-q4_k_m"
QUESTION = "What is the capital of France?"
MESSAGES = [{"role": "user", "content": QUESTION}]
TOKENS = 8
# Whatever the mesh has to do must be done by then.
PATIENCE_S = 120


class Mesh:
    """The nodes: one serves a model, one the other, and the entrance, which everybody asks, serves nothing of its own."""

    def __init__(self, folder: pathlib.Path, models: dict[str, pathlib.Path]) -> None:
        self.folder, self.models = folder, models
        for name in ("first", "second", "entrance"):
            (folder / name).mkdir()
        self.first = Node(folder / "first", "--name", "first", "--open", "--model", str(models[MODEL]))
        self.second = self.start_second()
        self.entrance = Node(folder / "entrance", "--name", "entrance", "--open", "--peer", self.first.address)

    def start_second(self) -> Node:
        """The node of the other model, for the first time or after its death."""
        flags = ["--name", "second", "--open", "--peer", self.first.address, "--model", str(self.models[OTHER])]
        return Node(self.folder / "second", *flags)

    def stop(self) -> None:
        """Ends every node."""
        for node in (self.entrance, self.second, self.first):
            node.stop()


@pytest.fixture
def mesh(tmp_path: pathlib.Path) -> Iterator[Mesh]:
    folder = pathlib.Path(os.environ.get("PANGEA_TEST_MODELS") or pathlib.Path.home() / ".cache/pangea/test-models")
    models = {model: folder / f"{model}.gguf" for model in (MODEL, OTHER)}
    for path in models.values():
        if not path.is_file():
            pytest.skip(f"SKIPPED: {path} is not there")
    mesh = Mesh(tmp_path, models)
    yield mesh
    mesh.stop()


def by_chat_completions(mesh: Mesh, model: str) -> str:
    with openai.OpenAI(base_url=f"{mesh.entrance.url}/v1", api_key="none", max_retries=0) as client:
        pieces = client.chat.completions.create(model=model, messages=MESSAGES, max_tokens=TOKENS, temperature=0, stream=True)
        return "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices)


def by_responses(mesh: Mesh, model: str) -> str:
    with openai.OpenAI(base_url=f"{mesh.entrance.url}/v1", api_key="none", max_retries=0) as client:
        asked = {"model": model, "input": QUESTION, "max_output_tokens": TOKENS, "temperature": 0}
        with client.responses.stream(**asked) as stream:
            return "".join(event.delta for event in stream if event.type == "response.output_text.delta")


def by_messages(mesh: Mesh, model: str) -> str:
    with anthropic.Anthropic(base_url=mesh.entrance.url, api_key="none", max_retries=0) as client:
        asked = {"model": model, "max_tokens": TOKENS, "messages": MESSAGES, "extra_body": {"temperature": 0}}
        with client.messages.stream(**asked) as stream:
            return "".join(stream.text_stream)


def by_ollama(mesh: Mesh, model: str) -> str:
    options = {"temperature": 0, "num_predict": TOKENS}
    pieces = ollama.Client(host=mesh.entrance.url).chat(model=model, messages=MESSAGES, options=options, stream=True)
    return "".join(piece.message.content or "" for piece in pieces)


def by_curl(mesh: Mesh, model: str) -> str:
    body = json.dumps({"model": model, "messages": MESSAGES, "max_tokens": TOKENS, "temperature": 0})
    command = ["curl", "--silent", "--fail-with-body", "--json", body, f"{mesh.entrance.url}/v1/chat/completions"]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=True).stdout
    return str(json.loads(answer)["choices"][0]["message"]["content"])


def by_llm(mesh: Mesh, model: str) -> str:
    tools = pathlib.Path(sys.executable).parent
    home = mesh.folder / "home"
    home.mkdir(exist_ok=True)
    environment = {**os.environ, "HOME": str(home), "PATH": f"{tools}:{os.environ['PATH']}"}
    command = [os.environ["PANGEA_BIN"], "launch", "llm", "--data-dir", mesh.entrance.data_dir, "--model", model, "--"]
    command += [QUESTION, "--no-log", "-o", "temperature", "0", "-o", "max_tokens", str(TOKENS)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE_S, check=True)
    return done.stdout


WAYS: dict[str, Callable[[Mesh, str], str]] = {
    "chat completions": by_chat_completions,
    "responses": by_responses,
    "messages": by_messages,
    "ollama": by_ollama,
    "curl": by_curl,
    "llm": by_llm,
}


def eventually(answer: Callable[[], str]) -> str:
    """The first answer that comes; errors before it are what a client sees while the mesh finds its way."""
    end = time.monotonic() + PATIENCE_S
    while True:
        try:
            return answer()
        except Exception:
            if time.monotonic() > end:
                raise


def test_two_models_at_one_entrance_while_a_node_dies_and_returns(mesh: Mesh) -> None:
    if not shutil.which("curl"):
        pytest.skip("SKIPPED: curl is not installed")
    texts = {model: eventually(lambda: by_chat_completions(mesh, model)) for model in (MODEL, OTHER)}
    assert all(texts.values()) and texts[MODEL] != texts[OTHER], texts
    for way, ask in WAYS.items():
        for model, text in texts.items():
            assert ask(mesh, model).strip() == text.strip(), f"{model} by {way}"
    with openai.OpenAI(base_url=f"{mesh.entrance.url}/v1", api_key="none", max_retries=0) as client:
        assert sorted(model.id for model in client.models.list()) == sorted(texts)
    mesh.second.kill()
    # The other model goes on as if nothing had happened.
    for way, ask in WAYS.items():
        assert ask(mesh, MODEL).strip() == texts[MODEL].strip(), f"by {way}, while the second node is dead"
    mesh.second = mesh.start_second()
    for way, ask in WAYS.items():
        assert eventually(lambda: ask(mesh, OTHER)).strip() == texts[OTHER].strip(), f"by {way}, after its return"
        assert ask(mesh, MODEL).strip() == texts[MODEL].strip(), f"by {way}, after its return"
