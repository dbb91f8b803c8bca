"""The package against a real node: the binary named by PANGEA_BIN, or one that PANGEA_RPC says is running."""

from __future__ import annotations

import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator

import numpy as np
import pangea
import pytest


@pytest.fixture(scope="session")
def address() -> Iterator[str]:
    running = os.environ.get("PANGEA_RPC")
    if running:
        yield running
        return
    binary = os.environ.get("PANGEA_BIN")
    if not binary:
        pytest.skip("SKIPPED: neither PANGEA_BIN (a `pangea` binary) nor PANGEA_RPC (a node's address) is set")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        rpc = f"127.0.0.1:{probe.getsockname()[1]}"
    with tempfile.TemporaryDirectory() as directory:
        node = subprocess.Popen(
            [binary, "node", "--ephemeral", "--no-mdns", "--no-api", "--threads", "1", "--rpc-addr", rpc]
            + ["--listen", "/ip4/127.0.0.1/tcp/0", "--data-dir", directory],
            stdout=subprocess.DEVNULL,
        )
        try:
            deadline = time.monotonic() + 60
            while True:
                try:
                    pangea.Client(rpc, timeout=5).close()
                    break
                except pangea.Unavailable:
                    if node.poll() is not None or time.monotonic() > deadline:
                        raise
            yield rpc
        finally:
            node.terminate()
            node.wait(60)


@pytest.fixture
def client(address: str) -> Iterator[pangea.Client]:
    with pangea.Client(address) as client:
        yield client


def integers(rows: int, cols: int, dtype: str) -> np.ndarray:
    """Small integers, whose products every dtype holds exactly."""
    return (np.arange(rows * cols).reshape(rows, cols) % 7 - 3).astype(dtype)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int8"])
def test_products_are_numpys(client: pangea.Client, dtype: str) -> None:
    a, b = integers(33, 17, dtype), integers(17, 65, dtype)
    c = client.matmul(a, b)
    assert c.dtype == ("int32" if dtype == "int8" else dtype)
    np.testing.assert_array_equal(c, a.astype("float64") @ b.astype("float64"))


def test_any_layout_is_taken(client: pangea.Client) -> None:
    a, b = integers(20, 30, "float32"), integers(30, 10, "float32")
    expected = a @ b
    np.testing.assert_array_equal(client.matmul(np.asfortranarray(a), b), expected)
    np.testing.assert_array_equal(client.matmul(a.astype(">f4"), b), expected)
    np.testing.assert_array_equal(client.matmul(np.repeat(a, 2, 1)[:, ::2], b), expected)
    np.testing.assert_array_equal(client.matmul(a[::-1], b), expected[::-1])
    np.testing.assert_array_equal(client.matmul(b.T, a.T), expected.T)


def test_more_than_one_chunk_goes_and_comes(client: pangea.Client) -> None:
    a, b = integers(700, 1, "float64"), integers(1, 700, "float64")
    wide = integers(1, 300_001, "float64")
    np.testing.assert_array_equal(client.matmul(a, b), a @ b)
    np.testing.assert_array_equal(client.matmul(wide, np.ones((300_001, 1))), wide @ np.ones((300_001, 1)))


@pytest.mark.parametrize("shape", [(0, 3, 4), (3, 4, 0), (1, 1, 1)])
def test_empty_and_tiny_shapes(client: pangea.Client, shape: tuple[int, int, int]) -> None:
    m, k, n = shape
    assert client.matmul(np.ones((m, k)), np.ones((k, n))).shape == (m, n)


def test_what_cannot_be_multiplied_is_refused_with_a_hint(client: pangea.Client) -> None:
    square = np.ones((2, 2))
    with pytest.raises(TypeError, match="int64.*astype"):
        client.matmul(np.ones((2, 2), np.int64), square)
    with pytest.raises(pangea.UnsupportedDType, match="complex128"):
        client.matmul(square, square * 1j)
    with pytest.raises(pangea.InvalidInput, match=r"a\[None, :\]"):
        client.matmul(np.ones(2), square)
    with pytest.raises(ValueError, match="3 dimensions"):
        client.matmul(square, np.ones((2, 2, 2)))
    with pytest.raises(pangea.InvalidInput, match="columns"):
        client.matmul(np.ones((2, 3)), np.ones((2, 3)))
    with pytest.raises(pangea.InvalidInput, match="auto, local, remote"):
        client.matmul(square, square, place="moon")


@pytest.mark.parametrize("dtype", ["float32", "float64", "int32"])
def test_sums_are_numpys(client: pangea.Client, dtype: str) -> None:
    a, b = integers(333, 517, dtype), integers(517, 333, dtype).T
    c = client.add(a, b, verify=True)
    assert c.dtype == dtype
    np.testing.assert_array_equal(c, a + b)
    assert client.add(a[:0], b[:0]).shape == (0, 517)


def test_a_sum_is_an_operand_like_any_other(client: pangea.Client) -> None:
    a, b = integers(30, 20, "float64"), integers(30, 20, "float64")
    c = integers(20, 10, "float64")
    np.testing.assert_array_equal(client.matmul(client.add(a, b), c), (a + b) @ c)


def test_what_cannot_be_added_is_refused_with_a_hint(client: pangea.Client) -> None:
    square = np.ones((2, 2))
    for dtype in ("float16", "int8", "int64"):
        with pytest.raises(pangea.UnsupportedDType, match=f"{dtype}.*added.*float32, float64, int32"):
            client.add(square.astype(dtype), square)
    with pytest.raises(pangea.InvalidInput, match=r"\(2, 2\).*\(2, 1\).*same shape"):
        client.add(square, np.ones((2, 1)))
    with pytest.raises(pangea.InvalidInput, match="float64.*float32"):
        client.add(square, square.astype("float32"))
    most = np.full((2, 2), 2**31 - 1, "int32")
    with pytest.raises(pangea.InvalidInput, match="2147483647 \\+ 1 does not fit i32"):
        client.add(most, np.ones((2, 2), "int32"))


def test_progress_is_told(client: pangea.Client) -> None:
    seen: list[tuple[int, int]] = []
    client.matmul(np.ones((8, 8)), np.ones((8, 8)), progress=lambda done, total: seen.append((done, total)))
    done, total = seen[-1]
    assert done == total > 0


def test_node_and_peers_are_told(client: pangea.Client) -> None:
    status = client.status()
    assert status.version and status.memory_limit_bytes > 0
    assert isinstance(client.peers(), list)


def test_errors_of_the_node_have_their_class(client: pangea.Client) -> None:
    with pytest.raises(pangea.Error) as caught:
        client.connect("/ip4/127.0.0.1/tcp/1", timeout=2)
    assert type(caught.value) is not pangea.Internal
    limit = client.status().memory_limit_bytes
    column = np.lib.stride_tricks.as_strided(np.zeros(1, np.int8), (1 << 20, 1), (0, 0))
    if limit < 4 << 40:
        with pytest.raises(pangea.Overloaded):
            client.matmul(column, column.T)


def test_threads_share_a_client(client: pangea.Client) -> None:
    results: dict[int, bool] = {}

    def multiply(number: int) -> None:
        a = np.full((50, 50), float(number))
        results[number] = bool((client.matmul(a, np.eye(50)) == a).all())

    threads = [threading.Thread(target=multiply, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == dict.fromkeys(range(8), True)


def test_no_node_is_said_plainly() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        where = f"127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(pangea.Unavailable, match=f"{where}.*pangea node"):
        pangea.Client(where)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        with pytest.raises(ConnectionError, match="no answer within"):
            pangea.Client(f"127.0.0.1:{silent.getsockname()[1]}", timeout=0.1)


def test_a_closed_client_says_so(address: str) -> None:
    client = pangea.Client(address)
    client.close()
    client.close()
    with pytest.raises(pangea.Unavailable, match="closed"):
        client.status()


def test_interrupting_cancels_the_job(address: str) -> None:
    program = f"""
import numpy, pangea, sys
client = pangea.Client({address!r})
a = numpy.ones((1500, 1500), numpy.float32)
while True:
    print("multiplying", flush=True)
    client.matmul(a, a)
"""
    child = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert child.stdout is not None and child.stdout.readline() == b"multiplying\n"
    child.send_signal(signal.SIGINT)
    _, errors = child.communicate(timeout=60)
    assert child.returncode != 0 and b"KeyboardInterrupt" in errors
    with pangea.Client(address) as client:
        deadline = time.monotonic() + 60
        while client.status().jobs_running:
            assert time.monotonic() < deadline, "the job of an interrupted program still runs"


def test_bundled_schemas_are_the_nodes() -> None:
    """Links in the repository; copies in what is built from it."""
    bundled = pathlib.Path(pangea.__file__).parent / "schema"
    source = pathlib.Path(__file__).parents[3] / "schema"
    for schema in ("tensor.capnp", "job.capnp", "model.capnp", "plan.capnp", "membership.capnp", "node.capnp"):
        assert (bundled / schema).read_bytes() == (source / schema).read_bytes()
