"""Where a node is, as people write it. Parsing only; no name is looked up."""

from __future__ import annotations

import ipaddress

from ._errors import InvalidInput

DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 8080

UNIX_PREFIX = "unix:"

_FORMS = (
    "give a port such as 8080, a host such as 'mac2.local', both as '127.0.0.1:8080' or '[::1]:8080', "
    "or a node's socket on this host as 'unix:PATH'"
)


def socket_path(addr: object) -> str | None:
    """The path of the socket that `addr` names as `unix:PATH`; `None` where it names something else.

    Raises `InvalidInput` where the path is missing.
    """
    if not isinstance(addr, str) or not addr.startswith(UNIX_PREFIX):
        return None
    if addr == UNIX_PREFIX:
        raise InvalidInput(f"{addr!r} has no path behind its colon; {_FORMS}")
    return addr.removeprefix(UNIX_PREFIX)


def parse(addr: object) -> tuple[str, int]:
    """Host and port of `addr`: a port, a host, or `HOST:PORT`.

    Raises `InvalidInput`, which says what to write.
    """
    if isinstance(addr, int) and not isinstance(addr, bool):
        return DEFAULT_HOST, _port(addr, addr)
    if not isinstance(addr, str):
        raise InvalidInput(f"{addr!r} is a {type(addr).__name__}, not the address of a node; {_FORMS}")
    text = addr.strip()
    if "://" in text or "/" in text:
        raise InvalidInput(f"{addr!r} is not the address of a node's Cap'n Proto service; {_FORMS}")
    if text.isdecimal():
        return DEFAULT_HOST, _port(int(text), addr)
    if _is_ipv6(text):
        return text, DEFAULT_PORT
    if text.startswith("[") and text.endswith("]"):
        return _host(text, addr), DEFAULT_PORT
    host, separator, port = text.rpartition(":")
    if not separator:
        return _host(text, addr), DEFAULT_PORT
    if not port.isdecimal():
        raise InvalidInput(f"{addr!r} has no port behind its colon; {_FORMS}")
    return _host(host, addr), _port(int(port), addr)


def _host(text: str, addr: object) -> str:
    bracketed = text.startswith("[") and text.endswith("]")
    host = text[1:-1] if bracketed else text
    if bracketed != _is_ipv6(host):
        raise InvalidInput(f"{addr!r} is not an address: an IPv6 address with a port is '[ADDRESS]:PORT'; {_FORMS}")
    if not host or any(character.isspace() or character in "[]:" for character in host) and not bracketed:
        raise InvalidInput(f"{addr!r} names no host; {_FORMS}")
    return host


def _port(port: int, addr: object) -> int:
    if not 0 < port < 65536:
        raise InvalidInput(f"{addr!r} is not a port from 1 to 65535; {_FORMS}")
    return port


def _is_ipv6(text: str) -> bool:
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return True
