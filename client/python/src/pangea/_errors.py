"""The error kinds of a node as exceptions, and the one place that reads them from messages.

An error travels as `Kind: sentence` (see `schema/node.capnp`).
"""

from __future__ import annotations

import capnp


class Error(Exception):
    """Anything that a node, or the way to it, refuses or fails at. `kind` is what the node calls it."""

    kind = "Internal"


class InvalidInput(Error, ValueError):
    """The request itself is wrong; trying again cannot help."""

    kind = "InvalidInput"


class UnsupportedDType(InvalidInput, TypeError):
    """The elements are of a type that cannot be multiplied here."""


class Unauthorized(Error, PermissionError):
    """The caller may not do this."""

    kind = "Unauthorized"


class NotFound(Error, LookupError):
    """What was named does not exist."""

    kind = "NotFound"


class Overloaded(Error):
    """A limit is reached for now; trying later can help."""

    kind = "Overloaded"


class Unavailable(Error, ConnectionError):
    """Whoever was asked cannot be reached or is gone."""

    kind = "Unavailable"


class DeadlineExceeded(Error, TimeoutError):
    """The time given was not enough."""

    kind = "DeadlineExceeded"


class Cancelled(Error):
    """The work was cancelled."""

    kind = "Cancelled"


class VerificationFailed(Error):
    """No trustworthy result could be had."""

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
    """The error that an exception of the RPC system carries; the nearest kind where it carries none."""
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
