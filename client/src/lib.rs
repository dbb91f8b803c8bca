//! The client library that programs embed to use a Pangea node.
//!
//! * [`connection`]: the connection to a node, where every call starts.
//! * [`tensor`]: tensors held by a node, and the transfer of their bytes.
//! * [`operations`]: what a node computes from tensors.
//! * [`job`]: a running operation: options, progress, cancelling.
//! * [`jobs`]: everything that was asked of a node, as it stands.
//! * [`model`]: language models of a node: requests and streamed answers.
//! * [`membership`]: who belongs to a node's pool.
//! * [`out_of_core`]: products larger than memory, block by block.
//! * [`blocking`]: the same calls for programs that are not asynchronous.
//! * [`plan`]: where the layers of a model would be placed, and are placed.
//! * [`report`], [`status`], [`topology`]: a finished job; a node and its peers; the pool.
//! * [`exception`]: the wire form of the error kinds, which are the same on every surface.
//! * [`sse`]: server-sent events, for programs that stream answers over a node's HTTP API.
//! * [`transport`]: the limits of a connection, the same at both ends.
//!
//! The crate knows a node's interfaces for programs and nothing of libp2p or kernels.

pub mod blocking;
pub mod connection;
pub mod dtype;
pub mod exception;
pub mod job;
pub mod jobs;
pub mod membership;
pub mod model;
pub mod operations;
pub mod out_of_core;
pub mod plan;
pub mod report;
pub mod sse;
pub mod status;
pub mod tensor;
mod text;
pub mod topology;
pub mod transport;

pub use connection::{Client, DEFAULT_ADDRESS, UNIX_PREFIX};
pub use dtype::DType;
pub use job::{Job, MatmulOptions, Place, Progress, VerifyPolicy};
pub use jobs::JobStatus;
pub use membership::{AskedMember, Invitation, InviteOptions, JoinedPool, MemberStatus, MembersStatus, Membership};
pub use model::{AnswerStage, GenerationRequest, GenerationSummary, Model, ModelStatus, Piece, Prompt, Sampling};
pub use pangea_units::{Error, ErrorKind, Result};
pub use plan::{ModelPlan, PlannedChain, PlannedStage};
pub use report::{JobReport, Rejection, TaskCounts, Verification, WorkerShare};
pub use status::{Counters, DeviceStatus, LinkProbe, MemoryUse, ModelState, NodeStatus, PeerStatus, WayBack};
pub use tensor::{Tensor, TensorBytes, TensorDestination, TensorInfo, TensorSource};
pub use topology::{Topology, TopologyLink, TopologyNode};
