"""How a node may be named. No node runs here."""

import pytest

import pangea
from pangea._address import parse, socket_path


@pytest.mark.parametrize(
    ("addr", "expected"),
    [
        (8080, ("127.0.0.1", 8080)),
        ("9090", ("127.0.0.1", 9090)),
        ("192.168.1.20", ("192.168.1.20", 8080)),
        ("mac2.local", ("mac2.local", 8080)),
        ("mac2.local:1", ("mac2.local", 1)),
        ("127.0.0.1:65535", ("127.0.0.1", 65535)),
        ("[::1]:8080", ("::1", 8080)),
        ("[::1]", ("::1", 8080)),
        ("::1", ("::1", 8080)),
    ],
)
def test_a_node_is_named_by_port_host_or_both(addr: object, expected: tuple[str, int]) -> None:
    assert parse(addr) == expected


@pytest.mark.parametrize(
    ("addr", "said"),
    [
        (0, "1 to 65535"),
        (65536, "1 to 65535"),
        (-1, "1 to 65535"),
        (True, "is a bool"),
        (None, "is a NoneType"),
        (80.0, "is a float"),
        (("127.0.0.1", 8080), "is a tuple"),
        ("", "names no host"),
        (":8080", "names no host"),
        ("host:", "no port"),
        ("host:http", "no port"),
        ("host:0", "1 to 65535"),
        ("http://127.0.0.1:8080", "Cap'n Proto"),
        ("/ip4/127.0.0.1/tcp/7777", "Cap'n Proto"),
        ("fe80::zz:1", "names no host"),
        ("[host]:1", "IPv6"),
        ("a b:1", "names no host"),
    ],
)
def test_what_names_no_node_is_refused_with_what_to_write(addr: object, said: str) -> None:
    with pytest.raises(pangea.InvalidInput, match="give a port such as 8080") as refused:
        pangea.Client(addr)  # type: ignore[arg-type]
    assert said in str(refused.value)


def test_a_socket_is_named_by_its_path() -> None:
    assert socket_path("unix:/home/me/.pangea/rpc.sock") == "/home/me/.pangea/rpc.sock"
    assert socket_path("127.0.0.1:8080") is None and socket_path(8080) is None
    with pytest.raises(pangea.InvalidInput, match="no path"):
        socket_path("unix:")
