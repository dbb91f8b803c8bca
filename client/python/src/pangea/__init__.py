"""Use a Pangea node from Python: NumPy arrays in, checked products out.

`Client` is where everything starts. Errors are told apart by class, never by text.
"""

from ._client import Client
from ._errors import (
    Cancelled,
    DeadlineExceeded,
    Error,
    Internal,
    InvalidInput,
    NotFound,
    Overloaded,
    Unauthorized,
    Unavailable,
    UnsupportedDType,
    VerificationFailed,
)
from ._status import Node, Peer

__all__ = [
    "Cancelled",
    "Client",
    "DeadlineExceeded",
    "Error",
    "Internal",
    "InvalidInput",
    "Node",
    "NotFound",
    "Overloaded",
    "Peer",
    "Unauthorized",
    "Unavailable",
    "UnsupportedDType",
    "VerificationFailed",
]
