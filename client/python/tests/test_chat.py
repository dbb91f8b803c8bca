"""Answers of a real model on a real node: the binary named by PANGEA_BIN, SmolLM2 where this machine has it."""

from __future__ import annotations

import asyncio
import os
import pathlib
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pangea
import pytest
from pangea._chat import _Stream

PARIS = [
    {"role": "system", "content": "You are a helpful assistant."},
    {"role": "user", "content": "What is the capital of France?"},
]


@pytest.fixture(scope="module")
def client() -> Iterator[pangea.Client]:
    binary = os.environ.get("PANGEA_BIN")
    if not binary:
        pytest.skip("SKIPPED: PANGEA_BIN (a `pangea` binary) is not set")
    usual = pathlib.Path.home() / ".cache/pangea/test-models"
    model = pathlib.Path(os.environ.get("PANGEA_TEST_MODELS", usual)) / "SmolLM2-135M-Instruct.Q4_1.gguf"
    if not model.is_file():
        pytest.skip(f"SKIPPED: {model} is not there; `scripts/setup.sh test` fetches it where it can")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        rpc = f"127.0.0.1:{probe.getsockname()[1]}"
    with tempfile.TemporaryDirectory() as directory:
        node = subprocess.Popen(
            [binary, "node", "--ephemeral", "--no-mdns", "--no-api", "--threads", "1", "--rpc-addr", rpc]
            + ["--listen", "/ip4/127.0.0.1/tcp/0", "--data-dir", directory, "--model", str(model)],
            stdout=subprocess.DEVNULL,
        )
        try:
            deadline = time.monotonic() + 60
            while True:
                try:
                    client = pangea.Client(rpc, timeout=5)
                    break
                except pangea.Unavailable:
                    if node.poll() is not None or time.monotonic() > deadline:
                        raise
            with client:
                yield client
        finally:
            node.terminate()
            node.wait(60)


def test_an_answer_comes_in_pieces_and_with_what_it_took(client: pangea.Client) -> None:
    answer = client.chat(PARIS, temperature=0, max_tokens=40)
    pieces = list(answer)
    assert len(pieces) > 1 and "Paris" in "".join(pieces)
    assert answer.text == "".join(pieces) == str(answer)
    assert answer.finish in ("stop", "length")
    assert answer.usage.prompt_tokens > 5 and 1 < answer.usage.answer_tokens <= 40
    # The one node that there is computed all of it.
    [stage] = answer.usage.stages
    assert stage == pangea.AnswerStage(client.status().peer, (0, 30))
    assert (answer.usage.verdict, answer.usage.failovers, answer.usage.receipts) == ("local", 0, [])
    # The same greedy request has the same answer; a text is what the user says.
    assert client.chat(PARIS, temperature=0, max_tokens=40).text == answer.text
    said = client.chat("Hello!", temperature=0, max_tokens=8).text
    assert said == client.chat([{"role": "user", "content": "Hello!"}], temperature=0, max_tokens=8).text


class _Hasty:
    """A node that tells an answer's end before anyone has handled its pieces."""

    pieces = ("The", " capital", " is Paris.")

    async def model(self, _name: str, _milliseconds: int) -> SimpleNamespace:
        return SimpleNamespace(model=self)

    async def generate(self, request: dict[str, Any], sink: Any) -> SimpleNamespace:
        self.sink = sink
        return SimpleNamespace(generation=self)

    async def summary(self) -> SimpleNamespace:
        self.late = asyncio.ensure_future(self._append())
        took = {"promptTokens": 4, "cachedTokens": 0, "answerTokens": 3, "queuedS": 0.0, "promptS": 0.1, "answerS": 0.1}
        stages = [SimpleNamespace(peer="one", first=0, end=16), SimpleNamespace(peer="other", first=16, end=30)]
        about = {"verdict": "audited", "stages": stages, "failovers": 1, "receipts": ["0123456789abcdef"]}
        return SimpleNamespace(summary=SimpleNamespace(**took, **about))

    async def _append(self) -> None:
        for text in self.pieces:
            await asyncio.sleep(0)
            await self.sink.append(SimpleNamespace(text=text, finish=""), None)
        await self.sink.append(SimpleNamespace(text="", finish="stop"), None)


def test_an_answer_is_whole_though_its_end_is_told_before_its_pieces_are_handled() -> None:
    stream = _Stream()
    usage = asyncio.run(stream.run(_Hasty(), "m", {}, None))
    assert tuple(stream.pieces.queue) == _Hasty.pieces
    assert stream.finish == "stop" and usage.answer_tokens == 3
    # Who had a part in it comes with what it took.
    assert usage.stages == [pangea.AnswerStage("one", (0, 16)), pangea.AnswerStage("other", (16, 30))]
    assert (usage.verdict, usage.failovers, usage.receipts) == ("audited", 1, ["0123456789abcdef"])


def test_a_seed_gives_the_same_answer_and_none_a_new_one(client: pangea.Client) -> None:
    def told(seed: int | None) -> str:
        return client.chat("Tell me a story.", temperature=1.5, max_tokens=24, seed=seed).text

    assert told(7) == told(7) != told(8)
    assert told(-1) == told(2**64 - 1)
    assert told(None) != told(None)


def test_a_text_is_gone_on_with_to_a_stop(client: pangea.Client) -> None:
    answer = client.complete("1, 2, 3, 4,", temperature=0, max_tokens=20, stop=["7"])
    assert "5, 6" in answer.text and "7" not in answer.text
    assert answer.finish == "stop"
    short = client.complete("1, 2, 3, 4,", temperature=0, max_tokens=3)
    assert short.finish == "length" and short.usage.answer_tokens == 3


def test_leaving_an_answer_cancels_it(client: pangea.Client) -> None:
    with client.chat("Count to a million.", temperature=0, max_tokens=5000) as answer:
        next(answer)
    with pytest.raises(pangea.Cancelled):
        _ = answer.usage
    deadline = time.monotonic() + 60
    while any(model.running for model in client.models()):
        assert time.monotonic() < deadline, "the node still generates for nobody"
    # One that nobody holds any more goes the same way.
    dropped = client.chat("Count to a million.", temperature=0, max_tokens=5000)
    next(dropped)
    del dropped
    while any(model.running for model in client.models()):
        assert time.monotonic() < deadline, "the node still generates for nobody"


def test_several_threads_ask_at_once(client: pangea.Client) -> None:
    alone = client.chat(PARIS, temperature=0, max_tokens=16).text
    texts: list[str] = []
    threads = [
        threading.Thread(target=lambda: texts.append(client.chat(PARIS, temperature=0, max_tokens=16).text))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert texts == [alone] * 4


def test_models_are_listed_by_name(client: pangea.Client) -> None:
    client.chat("Hi", max_tokens=1).text  # noqa: B018 - it is ready then
    [model] = client.models()
    assert (model.name, model.state, model.architecture) == ("SmolLM2-135M-Instruct.Q4_1", "ready", "llama")
    assert model.context > 0 and model.memory_bytes > 0


def test_what_is_wrong_is_said_by_kind(client: pangea.Client) -> None:
    with pytest.raises(pangea.NotFound, match="no-such-model"):
        _ = client.chat("Hi", model="no-such-model").text
    with pytest.raises(pangea.InvalidInput, match="temperature"):
        _ = client.chat("Hi", temperature=-1).text
    with pytest.raises(pangea.InvalidInput, match="shorten"):
        _ = client.complete("word " * 20_000).text
    with pytest.raises(pangea.InvalidInput, match="role"):
        client.chat([{"content": "Hi"}])
    with pytest.raises(pangea.InvalidInput, match="at least 1"):
        client.chat("Hi", max_tokens=0)
    # An error ends that answer alone.
    assert client.chat(PARIS, temperature=0, max_tokens=16).text
