"""`Client`: what users see. Synchronous; it owns no protocol and no asyncio of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any

import numpy.typing as npt

from ._arrays import Array, operand
from ._chat import Answer, request
from ._connection import Connection, matmul
from ._errors import InvalidInput
from ._status import Model, Node, Peer, Topology, TopologyLink, TopologyNode, from_wire

_PLACES = ("auto", "local", "remote")


class Client:
    """A connection to a Pangea node, by default to the one on this machine.

    Raises `Unavailable` where no node answers within `timeout` seconds. To be closed, best by `with`.
    """

    def __init__(self, addr: str = "127.0.0.1:8080", *, timeout: float = 10.0) -> None:
        host, separator, port = addr.rpartition(":")
        if not separator or not port.isdecimal() or not 0 < int(port) < 65536:
            raise InvalidInput(f"{addr!r} is not an address of a node; give HOST:PORT, such as 127.0.0.1:8080")
        self._connection = Connection(host.strip("[]"), int(port), timeout)

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connection; the node cancels and frees all it held for it."""
        self._connection.close()

    def matmul(
        self,
        a: npt.ArrayLike,
        b: npt.ArrayLike,
        *,
        place: str = "auto",
        verify: bool = False,
        timeout: float | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Array:
        """The checked product `[m, n]` of `a [m, k]` and `b [k, n]`.

        `float16`, `float32`, `float64` as NumPy has it; `int8` gives exact `int32`. Any strides and byte order.

        `place`: `auto` (where it finishes soonest), `local` (on the node) or `remote` (on its peers while one
        can). `verify`: check the whole product once more at the end. `timeout`: seconds in all, then
        `DeadlineExceeded`. `progress(done, total)`: called with counts of tasks, on the client's own thread.
        Ctrl-C cancels the work on every node.
        """
        if place not in _PLACES:
            raise InvalidInput(f"place {place!r} does not exist; use one of {', '.join(_PLACES)}")
        if timeout is not None and not timeout > 0:
            raise InvalidInput(f"a timeout of {timeout} s leaves no time")
        left, right = operand("a", a), operand("b", b)
        if left.shape[1] != right.shape[0]:
            raise InvalidInput(
                f"a is {left.shape} and b is {right.shape}: a needs as many columns as b has rows"
            )
        return self._connection.run(
            lambda node: matmul(node, left, right, place, verify, timeout, progress)
        )

    def chat(
        self,
        messages: str | Sequence[Mapping[str, str]],
        *,
        model: str = "",
        max_tokens: int | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repetition_penalty: float | None = None,
        presence_penalty: float | None = None,
        frequency_penalty: float | None = None,
        stop: str | Sequence[str] = (),
        seed: int | None = None,
        timeout: float | None = None,
    ) -> Answer:
        """Asks a language model; its answer comes piece by piece, or whole with `.text`, and with `.usage`.

        `messages`: mappings with a `role` (`system`, `user`, `assistant`) and a `content`, or a text, which the user
        says then. `model`: its name, by default the only one of the node. `temperature` 0 is greedy; the same `seed`
        gives the same answer, without one it is new every time. `timeout`: seconds until the model is ready, which it
        may have to be fetched for. What is wrong shows when the answer is read.
        """
        asked = request(
            messages,
            prompt=False,
            max_tokens=max_tokens,
            stop=stop,
            seed=seed,
            sampling={
                "temperature": temperature,
                "topK": top_k,
                "topP": top_p,
                "minP": min_p,
                "repetitionPenalty": repetition_penalty,
                "presencePenalty": presence_penalty,
                "frequencyPenalty": frequency_penalty,
            },
        )
        return Answer(self._connection, model, asked, timeout)

    def complete(
        self,
        prompt: str,
        *,
        model: str = "",
        max_tokens: int | None = None,
        temperature: float | None = None,
        stop: str | Sequence[str] = (),
        seed: int | None = None,
        timeout: float | None = None,
    ) -> Answer:
        """Has a language model go on with a text; see `chat`."""
        sampling = {"temperature": temperature}
        asked = request(prompt, prompt=True, max_tokens=max_tokens, stop=stop, seed=seed, sampling=sampling)
        return Answer(self._connection, model, asked, timeout)

    def models(self) -> list[Model]:
        """The language models that the node serves."""

        async def call(node: Any) -> list[Model]:
            return [from_wire(Model, model) for model in (await node.models()).models]

        return self._connection.run(call)

    def peers(self) -> list[Peer]:
        """Every peer the node knows."""

        async def call(node: Any) -> list[Peer]:
            return [from_wire(Peer, peer) for peer in (await node.peers()).peers]

        return self._connection.run(call)

    def status(self) -> Node:
        """The node itself."""

        async def call(node: Any) -> Node:
            return from_wire(Node, (await node.status()).status)

        return self._connection.run(call)

    def topology(self) -> Topology:
        """The pool as the node sees it."""

        async def call(node: Any) -> Topology:
            wire = (await node.topology()).topology
            nodes = [from_wire(TopologyNode, one) for one in wire.nodes]
            return Topology(nodes=nodes, links=[from_wire(TopologyLink, one) for one in wire.links])

        return self._connection.run(call)

    def check(self, peer: str, *, timeout: float | None = None) -> float:
        """Has the node ask a connected peer for a sign of life; the round trip in seconds."""
        milliseconds = 0 if timeout is None else max(1, round(timeout * 1000))

        async def call(node: Any) -> float:
            return float((await node.checkPeer(peer=peer, timeoutMs=milliseconds)).roundTripUs) / 1e6

        return self._connection.run(call)

    def connect(self, multiaddr: str, *, timeout: float | None = None) -> str:
        """Has the node connect to a peer; its peer id once both have admitted each other."""
        milliseconds = 0 if timeout is None else max(1, round(timeout * 1000))

        async def call(node: Any) -> str:
            return str((await node.connect(address=multiaddr, timeoutMs=milliseconds)).peer)

        return self._connection.run(call)
