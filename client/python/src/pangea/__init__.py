"""Use a Pangea node from Python: NumPy arrays in, checked products out; messages in, a model's answer out.

`Client` is the entry point. Programs distinguish errors by class, never by text.
"""

from ._binary import find_binary
from ._chat import Answer
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
from ._status import AnswerStage, Model, Node, Peer, Topology, TopologyLink, TopologyNode, Usage

__all__ = [
    "Answer",
    "AnswerStage",
    "Cancelled",
    "Client",
    "DeadlineExceeded",
    "Error",
    "Internal",
    "InvalidInput",
    "Model",
    "Node",
    "NotFound",
    "Overloaded",
    "Peer",
    "Topology",
    "TopologyLink",
    "TopologyNode",
    "Unauthorized",
    "Unavailable",
    "UnsupportedDType",
    "Usage",
    "VerificationFailed",
    "find_binary",
]
