"""`Client`, the interface of the package. Synchronous; owns no protocol and no event loop."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any

import numpy.typing as npt

from ._address import DEFAULT_HOST, DEFAULT_PORT, parse, socket_path
from ._arrays import Array, operand
from ._chat import Answer, request
from ._connection import Connection, Progress, compute
from ._errors import InvalidInput
from ._status import Model, Node, Peer, Topology, TopologyLink, TopologyNode, from_wire

_PLACES = ("auto", "local", "remote")


class Client:
    """A connection to a Pangea node, by default to the one on this machine.

    `addr`: a port, a host, both, or `unix:PATH` for the socket `rpc.sock` in a node's data directory. `key`: the API key
    of a node that requires one; without it, the one in the environment variable `PANGEA_API_KEY`.

    Raises `Unavailable` where no node answers within `timeout` seconds, `Unauthorized` where the node requires another
    key. Close the client after use, best with `with`.
    """

    def __init__(
        self, addr: str | int = f"{DEFAULT_HOST}:{DEFAULT_PORT}", *, timeout: float = 10.0, key: str | None = None
    ) -> None:
        path = socket_path(addr)
        where = path if path is not None else parse(addr)
        self._connection = Connection(where, timeout, key or os.environ.get("PANGEA_API_KEY") or None)

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
        """Closes the connection; the node cancels this client's jobs and frees its tensors."""
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

        `float16`, `float32` and `float64` keep their dtype; `int8` gives exact `int32`. Any strides and byte order.

        `place`: `auto` (where the product is predicted to finish soonest), `local` (on the node) or `remote` (on
        peers while one can compute). `verify`: check the whole product again at the end. `timeout`: seconds
        until `DeadlineExceeded`. `progress(done, total)`: called with counts of tasks, on the client's thread.
        Ctrl-C cancels the work on every node.
        """
        floats_and_int8 = ("float16", "float32", "float64", "int8")
        left, right = (
            operand(name, array, "multiplied", floats_and_int8, " (int8 gives exact int32)")
            for name, array in (("a", a), ("b", b))
        )
        if left.shape[1] != right.shape[0]:
            raise InvalidInput(
                f"a is {left.shape} and b is {right.shape}: a needs as many columns as b has rows"
            )
        return self._compute("matmul", "product", left, right, place, verify, timeout, progress)

    def add(
        self,
        a: npt.ArrayLike,
        b: npt.ArrayLike,
        *,
        place: str = "auto",
        verify: bool = False,
        timeout: float | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Array:
        """The checked sum, element by element, of two matrices of one shape and dtype.

        `float32`, `float64` or `int32`; the bits are the same wherever it is computed. Nothing is broadcast, and
        `InvalidInput` where a sum leaves `int32`. Checking a sum costs as much as computing it, so peers compute
        one only with `place="remote"`. The other arguments are those of `matmul`.
        """
        dtypes = ("float32", "float64", "int32")
        left, right = (operand(name, array, "added", dtypes) for name, array in (("a", a), ("b", b)))
        if left.shape != right.shape:
            raise InvalidInput(f"a is {left.shape} and b is {right.shape}: both need the same shape")
        if left.dtype != right.dtype:
            raise InvalidInput(f"a is {left.dtype} and b is {right.dtype}: convert one of them with .astype()")
        return self._compute("add", "sum", left, right, place, verify, timeout, progress)

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
        """Asks a language model and returns the running answer; see `Answer`.

        `messages`: mappings with a `role` (`system`, `user`, `assistant`) and a `content`, or one text of the user.
        `model`: name of the model; by default the only model of the node. `temperature` 0 is greedy. Equal requests
        with equal `seed` give equal answers; without `seed` a random one is used. `timeout`: seconds until the model
        is ready, including fetching it. Errors are raised when the answer is read.
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
        """Continues a text with a language model; see `chat`."""
        sampling = {"temperature": temperature}
        asked = request(prompt, prompt=True, max_tokens=max_tokens, stop=stop, seed=seed, sampling=sampling)
        return Answer(self._connection, model, asked, timeout)

    def models(self) -> list[Model]:
        """The language models that the node serves."""

        async def call(node: Any) -> list[Model]:
            return [from_wire(Model, model) for model in (await node.models()).models]

        return self._connection.run(call)

    def peers(self) -> list[Peer]:
        """Status of every peer that the node knows."""

        async def call(node: Any) -> list[Peer]:
            return [from_wire(Peer, peer) for peer in (await node.peers()).peers]

        return self._connection.run(call)

    def status(self) -> Node:
        """Status of the node."""

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
        """Makes the node check a connected peer (by peer id or name); returns the round trip in seconds."""
        milliseconds = 0 if timeout is None else max(1, round(timeout * 1000))

        async def call(node: Any) -> float:
            return float((await node.checkPeer(peer=peer, timeoutMs=milliseconds)).roundTripUs) / 1e6

        return self._connection.run(call)

    def connect(self, multiaddr: str, *, timeout: float | None = None) -> str:
        """Makes the node connect to a peer; returns the peer id once both have admitted each other."""
        milliseconds = 0 if timeout is None else max(1, round(timeout * 1000))

        async def call(node: Any) -> str:
            return str((await node.connect(address=multiaddr, timeoutMs=milliseconds)).peer)

        return self._connection.run(call)

    def _compute(
        self,
        operation: str,
        result: str,
        left: Array,
        right: Array,
        place: str,
        verify: bool,
        timeout: float | None,
        progress: Progress | None,
    ) -> Array:
        """The `result` of the node's method `operation`; see `matmul` for the rest."""
        if place not in _PLACES:
            raise InvalidInput(f"place {place!r} does not exist; use one of {', '.join(_PLACES)}")
        if timeout is not None and not timeout > 0:
            raise InvalidInput(f"timeout is {timeout} s; it must be positive")
        return self._connection.run(
            lambda node: compute(node, operation, result, left, right, place, verify, timeout, progress)
        )
