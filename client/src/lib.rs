//! What other programs embed to use a Pangea node.
//!
//! * [`connection`]: the connection to a node, where everything starts.
//! * [`tensor`]: tensors held by a node, and how their bytes get there and back.
//! * [`job`]: products under way: options, progress, cancelling.
//! * [`model`]: language models of a node, and their answers.
//! * [`out_of_core`]: products larger than memory, block by block.
//! * [`blocking`]: all of it for programs that are not asynchronous.
//! * [`plan`]: where the layers of a model would be, and are.
//! * [`report`], [`status`], [`topology`]: what a node says of a finished job, of itself and its peers, of its pool.
//! * [`error`]: the error kinds, the same on every surface; [`exception`]: how they travel.
//! * [`sse`]: server-sent events, for programs that stream answers over a node's HTTP API.
//! * [`transport`]: the connection's limits, the same at both ends.
//!
//! It knows the Cap'n Proto service and nothing of libp2p or kernels.

pub mod blocking;
pub mod connection;
pub mod dtype;
pub mod error;
pub mod exception;
pub mod job;
pub mod model;
pub mod out_of_core;
pub mod plan;
pub mod report;
pub mod sse;
pub mod status;
pub mod tensor;
mod text;
pub mod topology;
pub mod transport;

pub use connection::{Client, DEFAULT_ADDRESS};
pub use dtype::DType;
pub use error::{Error, ErrorKind, Result};
pub use job::{Job, MatmulOptions, Place, Progress, VerifyPolicy};
pub use model::{AnswerStage, GenerationRequest, GenerationSummary, Model, ModelStatus, Piece, Prompt, Sampling};
pub use plan::{ModelPlan, PlannedChain, PlannedStage};
pub use report::{JobReport, Rejection, TaskCounts, Verification, WorkerShare};
pub use status::{Counters, LinkProbe, NodeStatus, PeerStatus};
pub use tensor::{Tensor, TensorBytes, TensorDestination, TensorInfo, TensorSource};
pub use topology::{Topology, TopologyLink, TopologyNode};
