"""Answers of a language model: requests, streamed pieces, usage. Owns no connection."""

from __future__ import annotations

import asyncio
import queue
import secrets
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any

from ._connection import Connection, TokenSink
from ._errors import InvalidInput
from ._status import Usage, from_wire

# Pieces that may wait for a slow reader before the node waits, too.
_PIECES = 16


def request(
    messages: str | Sequence[Mapping[str, str]],
    *,
    prompt: bool,
    max_tokens: int | None,
    stop: str | Sequence[str],
    seed: int | None,
    sampling: Mapping[str, Any],
) -> dict[str, Any]:
    """A `GenerationRequest` as pycapnp takes it; `sampling` has the schema's field names, None for defaults."""
    if isinstance(messages, str):
        asked: dict[str, Any] = {"text": messages} if prompt else {"messages": [_message("user", messages)]}
    else:
        try:
            asked = {"messages": [_message(message["role"], message["content"]) for message in messages]}
        except (KeyError, TypeError) as error:
            raise InvalidInput(f"a message is a mapping with a role and a content ({error!r})") from None
    if max_tokens is not None and max_tokens < 1:
        raise InvalidInput(f"max_tokens is {max_tokens}; it must be at least 1")
    wire = {name: value for name, value in sampling.items() if value is not None}
    # Any 64 bits are a seed; a signed number is allowed, too.
    wire["seed"] = secrets.randbits(64) if seed is None else seed % (1 << 64)
    return {
        "prompt": asked,
        "sampling": wire,
        "maxTokens": max_tokens or 0,
        "stop": [stop] if isinstance(stop, str) and stop else list(stop),
    }


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


class _Stream:
    """Pieces on their way from the connection's thread. Holds no reference to the `Answer`, which may be dropped."""

    def __init__(self) -> None:
        self.pieces: queue.Queue[str | None] = queue.Queue()
        self.room = asyncio.Semaphore(_PIECES)
        self.finish = ""
        self._complete = asyncio.Event()

    async def run(self, node: Any, model: str, asked: dict[str, Any], timeout: float | None) -> Usage:
        milliseconds = 0 if timeout is None else max(1, round(timeout * 1000))
        # pycapnp has its own parameter `name`, so the model's name is passed by position.
        loaded = (await node.model(model, milliseconds)).model
        generation = (await loaded.generate(request=asked, sink=TokenSink(self._take))).generation
        try:
            usage = from_wire(Usage, (await generation.summary()).summary)
            # Earlier pieces may still be in the queue; the last of them tells why the answer ended.
            await self._complete.wait()
            return usage
        except asyncio.CancelledError:
            # Cancels at once; dropping the capability would wait until nothing refers to it.
            generation.cancel()
            raise

    async def _take(self, text: str, finish: str) -> None:
        self.finish = finish or self.finish
        if text:
            await self.room.acquire()
            self.pieces.put(text)
        if finish:
            self._complete.set()


class Answer(Iterator[str]):
    """A running answer: iterating yields its text piece by piece.

    `text`, `usage` and `finish` wait for the end of the answer. Leaving a `with` block before the end, `close` and
    dropping the answer cancel the generation.
    """

    def __init__(self, connection: Connection, model: str, asked: dict[str, Any], timeout: float | None) -> None:
        self._connection = connection
        self._stream = stream = _Stream()
        self._seen: list[str] = []
        self._over = False
        self._future = connection.start(lambda node: stream.run(node, model, asked, timeout))
        self._future.add_done_callback(lambda _: stream.pieces.put(None))

    def __iter__(self) -> Answer:
        return self

    def __next__(self) -> str:
        if not self._over:
            piece = self._stream.pieces.get()
            if piece is not None:
                self._seen.append(piece)
                self._connection.soon(self._stream.room.release)
                return piece
            self._over = True
        self._result()
        raise StopIteration

    def _result(self) -> Usage:
        return self._connection.result(self._future)

    @property
    def text(self) -> str:
        """The whole answer."""
        for _ in self:
            pass
        return "".join(self._seen)

    @property
    def usage(self) -> Usage:
        """Counts and times of the answer, its verdict, and the nodes that computed it."""
        for _ in self:
            pass
        return self._result()

    @property
    def finish(self) -> str:
        """Why the answer ended: `stop` or `length`."""
        for _ in self:
            pass
        return self._stream.finish

    def __str__(self) -> str:
        return self.text

    def close(self) -> None:
        """Cancels the rest of the answer."""
        self._over = True
        self._future.cancel()

    def __enter__(self) -> Answer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self._future.cancel()
