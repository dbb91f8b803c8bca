"""The connection to a node: an asyncio loop on a thread of its own, and the calls as coroutines on it.

Internal: `Client` passes coroutines to the thread and waits for their results.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import pathlib
import socket
import threading
import traceback
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import capnp
import numpy as np

from ._arrays import Array, numpy_dtype, wire_dtype
from ._errors import Cancelled, DeadlineExceeded, Error, Internal, Overloaded, Unauthorized, Unavailable, from_exception

_SCHEMA = pathlib.Path(__file__).parent / "schema"
# Import path of Cap'n Proto's own `/capnp/stream.capnp`.
_IMPORTS = [str(pathlib.Path(capnp.__file__).parent.parent)]

capnp.remove_import_hook()
_parser = capnp.SchemaParser()
_tensor_capnp = _parser.load(str(_SCHEMA / "tensor.capnp"), imports=_IMPORTS)
_job_capnp = _parser.load(str(_SCHEMA / "job.capnp"), imports=_IMPORTS)
_model_capnp = _parser.load(str(_SCHEMA / "model.capnp"), imports=_IMPORTS)
_node_capnp = _parser.load(str(_SCHEMA / "node.capnp"), imports=_IMPORTS)

_CHUNK_BYTES: int = _tensor_capnp.chunkBytes

Progress = Callable[[int, int], None]

_T = TypeVar("_T")


class _Sink(_tensor_capnp.ByteSink.Server):  # type: ignore[name-defined,misc]
    """The receiver of a tensor's bytes."""

    def __init__(self, target: memoryview) -> None:
        self._target = target
        self._filled = 0
        self.full = asyncio.Event()
        if not target:
            self.full.set()

    async def write(self, chunk: bytes, _context: Any, **_: Any) -> None:
        end = self._filled + len(chunk)
        self._target[self._filled : end] = chunk
        self._filled = end
        if end == len(self._target):
            self.full.set()


class _ProgressSink(_job_capnp.ProgressSink.Server):  # type: ignore[name-defined,misc]
    """The receiver of a job's progress."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    async def update(self, progress: Any, _context: Any, **_: Any) -> None:
        self._progress(progress.tasksDone, progress.tasksTotal)


class TokenSink(_model_capnp.TokenSink.Server):  # type: ignore[name-defined,misc]
    """The receiver of an answer: `take` gets the text of each piece, and the finish reason, empty but for the last."""

    def __init__(self, take: Callable[[str, str], Coroutine[Any, Any, None]]) -> None:
        self._take = take

    async def append(self, piece: Any, _context: Any, **_: Any) -> None:
        await self._take(str(piece.text), str(piece.finish))


class Connection:
    """One connection to a node, at the path of a socket or at a host's port, open until `close`."""

    def __init__(self, where: str | tuple[str, int], timeout: float, key: str | None) -> None:
        self._where = where if isinstance(where, str) else f"{where[0]}:{where[1]}"
        self._ready: concurrent.futures.Future[None] = concurrent.futures.Future()
        self._loop = asyncio.new_event_loop()
        self._closing = asyncio.Event()
        self._calls: set[asyncio.Task[Any]] = set()
        self._thread = threading.Thread(
            target=self._run, args=(where, timeout, key), name="pangea-client", daemon=True
        )
        self._thread.start()
        try:
            self._ready.result()
        except BaseException:
            self.close()
            raise

    def run(self, call: Callable[[Any], Coroutine[Any, Any, _T]]) -> _T:
        """Runs `call` with the node's capability and waits for its result. An interrupt cancels the call."""
        future = self.start(call)
        try:
            return self.result(future)
        except BaseException:
            future.cancel()
            raise

    def start(self, call: Callable[[Any], Coroutine[Any, Any, _T]]) -> concurrent.futures.Future[_T]:
        """Starts `call` with the node's capability and returns at once."""
        if not self._thread.is_alive():
            raise Unavailable("this client is closed")
        return asyncio.run_coroutine_threadsafe(self._call(call), self._loop)

    def result(self, future: concurrent.futures.Future[_T]) -> _T:
        """The result of a call; waits for it."""
        try:
            return future.result()
        except concurrent.futures.CancelledError:
            raise Cancelled("the call was cancelled, or its client was closed, before its end") from None

    def soon(self, callback: Callable[[], object]) -> None:
        """Calls `callback` on the connection's thread, unless the connection is closed."""
        try:
            self._loop.call_soon_threadsafe(callback)
        except RuntimeError:
            # The loop is closed: nothing waits for the callback.
            pass

    def close(self) -> None:
        """Closes the connection; the node frees everything it held for this client."""
        # Where connecting failed, the thread may have ended and closed its loop already.
        self.soon(self._closing.set)
        self._thread.join()

    def _run(self, where: str | tuple[str, int], timeout: float, key: str | None) -> None:
        try:
            self._loop.run_until_complete(self._serve(where, timeout, key))
        except Exception as error:
            if not self._ready.done():
                self._ready.set_exception(error)
        finally:
            self._loop.close()

    async def _serve(self, where: str | tuple[str, int], timeout: float, key: str | None) -> None:
        async with capnp.kj_loop():
            try:
                async with asyncio.timeout(timeout):
                    if isinstance(where, str):
                        stream = await capnp.AsyncIoStream.create_unix_connection(path=where)
                    else:
                        stream = await capnp.AsyncIoStream.create_connection(host=where[0], port=where[1])
                    rpc = capnp.TwoPartyClient(stream)
                    self._node = rpc.bootstrap().cast_as(_node_capnp.Node)
                    if key is not None:
                        self._node = await _logged_in(self._node, key)
                    await self._node.hello()
            except capnp.KjException as exception:
                error = from_exception(exception)
                if isinstance(error, Overloaded | Unauthorized):
                    raise error from None
                raise self._unreachable(str(error)) from exception
            except TimeoutError:
                raise self._unreachable(f"no answer within {timeout} s") from None
            except (OSError, socket.gaierror) as error:
                raise self._unreachable(str(error)) from error
            self._ready.set_result(None)
            await self._closing.wait()
            for call in self._calls:
                call.cancel()
            await asyncio.gather(*self._calls, return_exceptions=True)
            del self._node
            stream.close()

    def _unreachable(self, why: str) -> Unavailable:
        return Unavailable(
            f"no Pangea node answers at {self._where} ({why}); start one there with `pangea node`"
        )

    async def _call(self, call: Callable[[Any], Coroutine[Any, Any, _T]]) -> _T:
        task = asyncio.current_task()
        assert task is not None
        self._calls.add(task)
        try:
            return await call(self._node)
        except capnp.KjException as exception:
            _forget(exception)
            error = from_exception(exception)
        except BaseException as exception:
            _forget(exception)
            raise
        finally:
            self._calls.discard(task)
        raise error


async def _logged_in(node: Any, key: str) -> Any:
    """The node's capability for whoever shows its key."""
    try:
        return (await node.login(key=key)).node
    except capnp.KjException as exception:
        # A node from before keys: it requires none.
        if exception.type == "UNIMPLEMENTED":
            return node
        raise


def _forget(exception: BaseException | None) -> None:
    """Clears the frames of an exception: another thread may catch it, and dropping a capability on a thread other than
    its own ends the process."""
    while exception is not None:
        traceback.clear_frames(exception.__traceback__)
        exception = exception.__context__


async def compute(
    node: Any,
    operation: str,
    result: str,
    a: Array,
    b: Array,
    place: str,
    verify: bool,
    timeout: float | None,
    progress: Progress | None,
) -> Array:
    """The `result` that the node's method `operation` gives for two matrices. Cancelling the coroutine cancels the job."""
    options: dict[str, Any] = {"place": place, "verify": "full" if verify else "standard"}
    if timeout is not None:
        options["deadlineMs"] = max(1, round(timeout * 1000))
    try:
        async with asyncio.timeout(timeout):
            left, right = await asyncio.gather(_upload(node, a), _upload(node, b))
            started = getattr(node, operation)(a=left, b=right, options=options)
            job, tensor = started.job, getattr(started, result)
            try:
                if progress is not None:
                    await job.watch(sink=_ProgressSink(progress))
                return await _read(tensor)
            except asyncio.CancelledError:
                # Cancels at once; dropping both capabilities would wait until nothing refers to them.
                job.cancel()
                raise
    except TimeoutError as error:
        if isinstance(error, Error):
            raise
        raise DeadlineExceeded(f"no {result} within {timeout} s") from None


async def _upload(node: Any, matrix: Array) -> Any:
    rows, cols = matrix.shape
    sink = node.upload(dtype=wire_dtype(matrix), rows=rows, cols=cols).sink
    content = matrix.reshape(-1).view(np.uint8).data
    for start in range(0, len(content), _CHUNK_BYTES):
        await sink.write(chunk=bytes(content[start : start + _CHUNK_BYTES]))
    return (await sink.finish()).tensor


async def _read(tensor: Any) -> Array:
    info = (await tensor.info()).info
    matrix: Array = np.empty((info.rows, info.cols), numpy_dtype(str(info.dtype)))
    if matrix.nbytes != info.sizeBytes:
        raise Internal(f"the node says that {matrix.shape} {matrix.dtype} has {info.sizeBytes} bytes")
    sink = _Sink(matrix.reshape(-1).view(np.uint8).data)
    await tensor.read(sink=sink, offset=0, length=matrix.nbytes)
    await sink.full.wait()
    return matrix
