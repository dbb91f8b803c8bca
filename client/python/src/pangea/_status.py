"""The status of a node, its peers and its models: plain values. Fields as in `schema/*.capnp`."""

from __future__ import annotations

import dataclasses
import re
from typing import Any, TypeVar


@dataclasses.dataclass(frozen=True)
class Peer:
    """Status of one peer as the node sees it."""

    peer: str
    name: str
    state: str
    addresses: list[str]
    trust: float
    quarantined: bool
    why: str
    transport: str
    found_by: str
    rtt_ms: float
    bytes_per_s: float
    gflops: float
    threads: int
    tasks_in_flight: int
    tasks_checked: int
    version: str
    federation: bool


@dataclasses.dataclass(frozen=True)
class MemoryUse:
    """Memory of a node that is leased for one purpose."""

    purpose: str
    bytes: int


@dataclasses.dataclass(frozen=True)
class ModelState:
    """A model that can be asked for at a node."""

    name: str
    state: str
    why: str


@dataclasses.dataclass(frozen=True)
class Node:
    """Status of a node."""

    peer: str
    name: str
    version: str
    uptime_s: float
    listening: list[str]
    rpc: str
    pool_key: bool
    threads: int
    gflops: float
    isa: str
    memory_used_bytes: int
    memory_limit_bytes: int
    peers: int
    jobs_running: int
    jobs_done: int
    jobs_failed: int
    tasks_served: int
    bytes_sent: int
    bytes_received: int
    memory: list[MemoryUse]
    api: str
    models: list[ModelState]
    master: str
    federation: bool
    federation_peers: int


@dataclasses.dataclass(frozen=True)
class TopologyNode:
    """A node of the pool."""

    peer: str
    name: str
    master: bool
    models: list[str]
    device: str
    memory_bytes: int
    gflops: float


@dataclasses.dataclass(frozen=True)
class TopologyLink:
    """A connection of the pool in one direction: `bytes_per_s` is what it can carry, `sent_bytes_per_s` what passes over it now."""

    from_: str
    to: str
    rtt_ms: float
    bytes_per_s: float
    sent_bytes_per_s: float
    transport: str
    found_by: str


@dataclasses.dataclass(frozen=True)
class Topology:
    """The pool as a node sees it: its live nodes, and each connection once in each direction."""

    nodes: list[TopologyNode]
    links: list[TopologyLink]


@dataclasses.dataclass(frozen=True)
class AnswerStage:
    """A stage of an answer: `layers` is the half-open range [first, end), from 0."""

    peer: str
    layers: tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Usage:
    """Counts and times of an answer, its verdict and its stages. Fields as in `schema/model.capnp`."""

    prompt_tokens: int
    cached_tokens: int
    answer_tokens: int
    queued_s: float
    prompt_s: float
    answer_s: float
    verdict: str
    stages: list[AnswerStage]
    failovers: int
    receipts: list[str]


@dataclasses.dataclass(frozen=True)
class Model:
    """A model that a node serves. Fields as in `schema/model.capnp`."""

    name: str
    state: str
    why: str
    architecture: str
    layers: int
    context: int
    vocabulary: int
    memory_bytes: int
    running: int
    waiting: int


_Value = TypeVar("_Value", Peer, Node, Model, TopologyNode, TopologyLink, Usage)


def from_wire(kind: type[_Value], wire: Any) -> _Value:
    """A value from its wire struct, whose fields have the same names in camel case."""
    values: dict[str, Any] = {}
    for field in dataclasses.fields(kind):
        name = re.sub(r"_(\w)", lambda match: match.group(1).upper(), field.name.rstrip("_"))
        value = getattr(wire, name)
        if field.type == "list[str]":
            value = list(value)
        elif field.type == "list[MemoryUse]":
            value = [MemoryUse(held.purpose, held.bytes) for held in value]
        elif field.type == "list[ModelState]":
            value = [ModelState(model.name, model.state, model.why) for model in value]
        elif field.type == "list[AnswerStage]":
            value = [AnswerStage(stage.peer, (stage.first, stage.end)) for stage in value]
        values[field.name] = value
    return kind(**values)
