"""The error kinds of a node as exceptions, and the only code that reads them from messages.

The wire form of an error is `Kind: sentence` (see `schema/node.capnp`).
"""

from __future__ import annotations

import capnp


class Error(Exception):
    """Any failure of a node or of the connection to it. `kind` is the name of the error kind."""

    kind = "Internal"


class InvalidInput(Error, ValueError):
    """The request itself is wrong; trying again cannot help."""

    kind = "InvalidInput"


class UnsupportedDType(InvalidInput, TypeError):
    """The elements have a dtype that Pangea does not multiply."""


class Unauthorized(Error, PermissionError):
    """The caller may not do this."""

    kind = "Unauthorized"


class NotFound(Error, LookupError):
    """The named object does not exist."""

    kind = "NotFound"


class Overloaded(Error):
    """A limit is reached for now; trying later can help."""

    kind = "Overloaded"


class Unavailable(Error, ConnectionError):
    """The node or peer cannot be reached or is gone."""

    kind = "Unavailable"


class DeadlineExceeded(Error, TimeoutError):
    """The deadline passed."""

    kind = "DeadlineExceeded"


class Cancelled(Error):
    """The work was cancelled."""

    kind = "Cancelled"


class VerificationFailed(Error):
    """No trustworthy result could be computed."""

    kind = "VerificationFailed"


class Internal(Error):
    """A defect on the node's side."""

    kind = "Internal"


_BY_KIND: dict[str, type[Error]] = {
    error.kind: error
    for error in (
        InvalidInput,
        Unauthorized,
        NotFound,
        Overloaded,
        Unavailable,
        DeadlineExceeded,
        Cancelled,
        VerificationFailed,
        Internal,
    )
}

_REMOTE_PREFIX = "remote exception: "


def from_exception(exception: capnp.KjException) -> Error:
    """The error that an exception of the RPC system carries; the nearest kind for an exception without one."""
    text = str(exception.description)
    while text.startswith(_REMOTE_PREFIX):
        text = text[len(_REMOTE_PREFIX) :]
    kind, separator, message = text.partition(": ")
    if separator and kind in _BY_KIND:
        return _BY_KIND[kind](message)
    if exception.type == "DISCONNECTED":
        return Unavailable(f"the connection to the node was lost ({text})")
    if exception.type == "OVERLOADED":
        return Overloaded(text)
    if exception.type == "UNIMPLEMENTED":
        return NotFound(f"the node does not know this call; is it older than this package? ({text})")
    return Internal(text)
