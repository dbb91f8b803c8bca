//! The messages of `/pangea/task/1`: typed here, Cap'n Proto on the wire.
//!
//! Decoding is where bytes from a peer are judged; a [`Message`] that exists is well formed.

use std::time::Duration;

use pangea_client::ErrorKind;
use pangea_compute::{DType, Digest, Operation};
use pangea_schema::task_capnp as wire;

use super::field::{
    header_error, kind_from_wire, kind_to_wire, printable, read_digest, read_text, read_trace, truncated,
    unknown_variant, write_digest,
};
use super::frame::FrameLimits;
use super::{Header, TraceParent, WireError, operation};

/// The coordinator's number of a task, unique on one stream.
pub type TaskId = u64;

/// The longest header: the longest message (a failure with its text) is under 2 KiB.
pub const MAX_HEADER_BYTES: u32 = 4096;

/// The longest payload. Large enough that the cost per frame vanishes, small enough that a cancel
/// waits behind at most one of them: about a millisecond at 1 GB/s.
pub const MAX_PAYLOAD_BYTES: u32 = 1 << 20;

/// The largest tensor a message may speak of; beyond any device's memory, yet far from overflow.
const MAX_TENSOR_BYTES: u64 = 1 << 42;
const MAX_NAME_BYTES: usize = 64;
const MAX_ISA_BYTES: usize = 16;
const MAX_FAILURE_BYTES: usize = 1024;
const MAX_GOODBYE_BYTES: usize = 256;
/// Operands of one task.
const MAX_MISSING: u32 = 2;

/// Dtype and shape of a tensor, `[rows, cols]`; its size in bytes is known to fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    dtype: DType,
    rows: u64,
    cols: u64,
}

impl Shape {
    /// The shape `[rows, cols]` of `dtype`, unless a tensor of it is absurdly large.
    pub fn new(dtype: DType, rows: u64, cols: u64) -> Result<Shape, WireError> {
        rows.checked_mul(cols)
            .and_then(|elements| elements.checked_mul(dtype.size_bytes() as u64))
            .filter(|bytes| *bytes <= MAX_TENSOR_BYTES)
            .map(|_| Shape { dtype, rows, cols })
            .ok_or_else(|| WireError::Header(format!("a tensor of [{rows}, {cols}] {} is too large", dtype.name())))
    }

    /// Type of the elements.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows as usize
    }

    /// Number of columns.
    pub fn cols(&self) -> usize {
        self.cols as usize
    }

    /// Size of the whole tensor in bytes.
    pub fn size_bytes(&self) -> u64 {
        self.rows * self.cols * self.dtype.size_bytes() as u64
    }
}

/// What a node says of itself when a stream opens.
#[derive(Clone, Debug, PartialEq)]
pub struct TaskHello {
    /// Version of the protocol.
    pub version: u16,
    /// Name for people.
    pub name: String,
    /// Software and its version.
    pub software: String,
    /// Compute threads it gives.
    pub threads: u16,
    /// Measured speed of f32 products, in FLOP/s.
    pub f32_flops_per_s: f64,
    /// Measured speed of f64 products, in FLOP/s.
    pub f64_flops_per_s: f64,
    /// Measured speed of i8 products, in operations per second.
    pub i8_flops_per_s: f64,
    /// Bytes of operands it keeps for the peer it says this to.
    pub store_bytes: u64,
    /// Tasks it takes from that peer at once.
    pub tasks_max: u16,
    /// Instruction set of its kernels.
    pub isa: String,
    /// Whether it takes tasks.
    pub works: bool,
}

/// The unit that is placed: pure and idempotent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Task {
    /// The coordinator's number of it.
    pub id: TaskId,
    /// Higher goes first.
    pub priority: i8,
    /// Time from now after which nobody wants the result.
    pub deadline: Option<Duration>,
    /// What to do.
    pub operation: Operation,
    /// What to do it with, left and right.
    pub operands: [Digest; 2],
    /// The span that the task is a part of.
    pub trace: Option<TraceParent>,
}

/// A worker's signature of a whole result. What it signs is the room `trust`'s.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResultSignature {
    /// Digest of the result.
    pub digest: Digest,
    /// Ed25519 signature.
    pub signature: [u8; 64],
}

/// One message.
#[derive(Clone, Debug, PartialEq)]
pub enum Message {
    /// The first message each way.
    Hello(TaskHello),
    /// A piece of an operand; the payload belongs at `offset`.
    Operand {
        /// Content address of the whole operand.
        digest: Digest,
        /// Shape of the whole operand.
        shape: Shape,
        /// Where the payload belongs, in bytes.
        offset: u64,
    },
    /// Do this.
    Task(Task),
    /// Do something that this version of the protocol has no name for.
    UnknownTask(TaskId),
    /// Nobody wants this task's result any more.
    Cancel(TaskId),
    /// No job of the coordinator needs this operand any more.
    Release(Digest),
    /// A piece of a result; the payload belongs at `offset`.
    Result {
        /// Whose result.
        task: TaskId,
        /// Shape of the whole result.
        shape: Shape,
        /// Where the payload belongs, in bytes.
        offset: u64,
        /// Time the whole task computed, in nanoseconds.
        compute_nanos: u64,
        /// The worker's signature, with the last piece.
        signed: Option<ResultSignature>,
    },
    /// The task failed.
    Failure {
        /// Which task.
        task: TaskId,
        /// Why, for programs.
        kind: ErrorKind,
        /// Why, for people.
        message: String,
        /// When to try again after an overload, where the worker says so; in whole milliseconds on the wire.
        retry_after: Option<Duration>,
    },
    /// Operands of the task are not held (any more).
    Missing {
        /// Which task.
        task: TaskId,
        /// Which operands.
        digests: Vec<Digest>,
    },
    /// An operand was dropped to make room.
    Evicted(Digest),
    /// How busy the worker is.
    Load {
        /// Predicted time until a task sent now would start, in nanoseconds.
        queued_nanos: u64,
    },
    /// Bytes to measure a link with.
    Probe {
        /// Which probe.
        nonce: u64,
        /// Payload bytes in all frames of the probe.
        total: u64,
        /// Whether this is the last frame.
        last: bool,
    },
    /// The whole probe arrived.
    Probed(u64),
    /// This side goes, and why.
    Goodbye(String),
    /// The task left the queue and computes.
    Started(TaskId),
}

impl Header for Message {
    const LIMITS: FrameLimits = FrameLimits { header_bytes: MAX_HEADER_BYTES, payload_bytes: MAX_PAYLOAD_BYTES };

    fn name(&self) -> &'static str {
        match self {
            Message::Hello(_) => "hello",
            Message::Operand { .. } => "operand",
            Message::Task(_) | Message::UnknownTask(_) => "task",
            Message::Cancel(_) => "cancel",
            Message::Release(_) => "release",
            Message::Result { .. } => "result",
            Message::Failure { .. } => "failure",
            Message::Missing { .. } => "missing",
            Message::Evicted(_) => "evicted",
            Message::Load { .. } => "load",
            Message::Probe { .. } => "probe",
            Message::Probed(_) => "probed",
            Message::Goodbye(_) => "goodbye",
            Message::Started(_) => "started",
        }
    }

    fn write(&self, to: capnp::any_pointer::Builder<'_>) {
        self.write_to(to.init_as());
    }

    fn read(from: capnp::any_pointer::Reader<'_>) -> Result<Message, WireError> {
        Message::read_from(from.get_as().map_err(header_error)?)
    }

    /// A payload goes only with the messages that have one, and lies within its tensor.
    fn check_payload(&self, payload_len: usize) -> Result<(), WireError> {
        match self {
            Message::Operand { shape, offset, .. } | Message::Result { shape, offset, .. } => {
                let end = offset.checked_add(payload_len as u64);
                let total = shape.size_bytes();
                if end.is_none_or(|end| end > total) {
                    return self.refuse_payload(payload_len, format!(": offset {offset} in a tensor of {total} bytes"));
                }
                if payload_len == 0 && total != 0 {
                    return self.refuse_payload(payload_len, ": an empty piece".to_owned());
                }
                Ok(())
            }
            Message::Probe { total, .. } if payload_len as u64 > *total => {
                self.refuse_payload(payload_len, format!(": {total} in all"))
            }
            Message::Probe { .. } => Ok(()),
            _ if payload_len != 0 => self.refuse_payload(payload_len, String::new()),
            _ => Ok(()),
        }
    }
}

impl Message {
    fn write_to(&self, mut to: wire::task_message::Builder<'_>) {
        match self {
            Message::Hello(hello) => write_hello(hello, to.init_hello()),
            Message::Operand { digest, shape, offset } => {
                let mut operand = to.init_operand();
                write_digest(digest, operand.reborrow().init_digest());
                write_shape(shape, operand.reborrow().init_shape());
                operand.set_offset(*offset);
            }
            Message::Task(task) => write_task(task, to.init_task()),
            // The operation stays unset.
            Message::UnknownTask(task) => to.init_task().set_id(*task),
            Message::Cancel(task) => to.set_cancel(*task),
            Message::Release(digest) => write_digest(digest, to.init_release()),
            Message::Result { task, shape, offset, compute_nanos, signed } => {
                let mut result = to.init_result();
                result.set_task(*task);
                write_shape(shape, result.reborrow().init_shape());
                result.set_offset(*offset);
                result.set_compute_nanos(*compute_nanos);
                if let Some(signed) = signed {
                    write_digest(&signed.digest, result.reborrow().init_digest());
                    result.set_signature(&signed.signature);
                }
            }
            Message::Failure { task, kind, message, retry_after } => {
                let mut failure = to.init_failure();
                failure.set_task(*task);
                failure.set_kind(kind_to_wire(*kind));
                failure.set_message(truncated(message, MAX_FAILURE_BYTES));
                // Rounded up, so that a short time does not become none.
                let millis = retry_after.map_or(0, |after| after.as_micros().div_ceil(1_000));
                failure.set_retry_after_ms(u32::try_from(millis).unwrap_or(u32::MAX));
            }
            Message::Missing { task, digests } => {
                let mut missing = to.init_missing();
                missing.set_task(*task);
                let mut list = missing.init_digests(digests.len() as u32);
                for (i, digest) in digests.iter().enumerate() {
                    write_digest(digest, list.reborrow().get(i as u32));
                }
            }
            Message::Evicted(digest) => write_digest(digest, to.init_evicted()),
            Message::Load { queued_nanos } => to.init_load().set_queued_nanos(*queued_nanos),
            Message::Probe { nonce, total, last } => {
                let mut probe = to.init_probe();
                probe.set_nonce(*nonce);
                probe.set_total(*total);
                probe.set_last(*last);
            }
            Message::Probed(nonce) => to.set_probed(*nonce),
            Message::Goodbye(why) => to.set_goodbye(truncated(why, MAX_GOODBYE_BYTES)),
            Message::Started(task) => to.set_started(*task),
        }
    }

    fn read_from(from: wire::task_message::Reader<'_>) -> Result<Message, WireError> {
        use wire::task_message::Which;
        Ok(match from.which().map_err(|unknown| unknown_variant("message", unknown.0))? {
            Which::Hello(hello) => Message::Hello(read_hello(hello.map_err(header_error)?)?),
            Which::Operand(operand) => {
                let operand = operand.map_err(header_error)?;
                Message::Operand {
                    digest: read_digest(operand.get_digest().map_err(header_error)?),
                    shape: read_shape(operand.get_shape().map_err(header_error)?)?,
                    offset: operand.get_offset(),
                }
            }
            Which::Task(task) => read_task(task.map_err(header_error)?)?,
            Which::Cancel(task) => Message::Cancel(task),
            Which::Release(digest) => Message::Release(read_digest(digest.map_err(header_error)?)),
            Which::Result(result) => {
                let result = result.map_err(header_error)?;
                Message::Result {
                    task: result.get_task(),
                    shape: read_shape(result.get_shape().map_err(header_error)?)?,
                    offset: result.get_offset(),
                    compute_nanos: result.get_compute_nanos(),
                    signed: read_signature(result)?,
                }
            }
            Which::Failure(failure) => {
                let failure = failure.map_err(header_error)?;
                Message::Failure {
                    task: failure.get_task(),
                    kind: failure.get_kind().map(kind_from_wire).unwrap_or(ErrorKind::Internal),
                    message: read_text("failure", failure.get_message(), MAX_FAILURE_BYTES)?,
                    retry_after: Some(failure.get_retry_after_ms())
                        .filter(|millis| *millis > 0)
                        .map(|millis| Duration::from_millis(u64::from(millis))),
                }
            }
            Which::Missing(missing) => {
                let missing = missing.map_err(header_error)?;
                let digests = missing.get_digests().map_err(header_error)?;
                if digests.is_empty() || digests.len() > MAX_MISSING {
                    return Err(WireError::Header(format!("{} missing operands of one task", digests.len())));
                }
                Message::Missing { task: missing.get_task(), digests: digests.iter().map(read_digest).collect() }
            }
            Which::Evicted(digest) => Message::Evicted(read_digest(digest.map_err(header_error)?)),
            Which::Load(load) => Message::Load { queued_nanos: load.map_err(header_error)?.get_queued_nanos() },
            Which::Probe(probe) => {
                let probe = probe.map_err(header_error)?;
                Message::Probe { nonce: probe.get_nonce(), total: probe.get_total(), last: probe.get_last() }
            }
            Which::Probed(nonce) => Message::Probed(nonce),
            Which::Goodbye(why) => Message::Goodbye(read_text("goodbye", why, MAX_GOODBYE_BYTES)?),
            Which::Started(task) => Message::Started(task),
        })
    }
}

/// The signature of a result; `None` for a piece without one.
fn read_signature(from: wire::result_chunk::Reader<'_>) -> Result<Option<ResultSignature>, WireError> {
    if !from.has_signature() {
        return Ok(None);
    }
    let signature = from.get_signature().map_err(header_error)?;
    let wrong = |_| WireError::Header(format!("a signature of {} bytes", signature.len()));
    let digest = read_digest(from.get_digest().map_err(header_error)?);
    Ok(Some(ResultSignature { digest, signature: signature.try_into().map_err(wrong)? }))
}

fn write_hello(hello: &TaskHello, mut to: wire::task_hello::Builder<'_>) {
    to.set_version(hello.version);
    to.set_name(truncated(&hello.name, MAX_NAME_BYTES));
    to.set_software(truncated(&hello.software, MAX_NAME_BYTES));
    to.set_threads(hello.threads);
    to.set_f32_flops_per_s(hello.f32_flops_per_s);
    to.set_f64_flops_per_s(hello.f64_flops_per_s);
    to.set_i8_flops_per_s(hello.i8_flops_per_s);
    to.set_store_bytes(hello.store_bytes);
    to.set_tasks_max(hello.tasks_max);
    to.set_isa(truncated(&hello.isa, MAX_ISA_BYTES));
    to.set_works(hello.works);
}

fn read_hello(from: wire::task_hello::Reader<'_>) -> Result<TaskHello, WireError> {
    let speed = |what: &str, flops_per_s: f64| {
        if flops_per_s.is_finite() && flops_per_s >= 0.0 {
            Ok(flops_per_s)
        } else {
            Err(WireError::Header(format!("a hello with {what} of {flops_per_s} FLOP/s")))
        }
    };
    Ok(TaskHello {
        version: from.get_version(),
        name: printable(read_text("name", from.get_name(), MAX_NAME_BYTES)?),
        software: printable(read_text("software", from.get_software(), MAX_NAME_BYTES)?),
        threads: from.get_threads(),
        f32_flops_per_s: speed("f32", from.get_f32_flops_per_s())?,
        f64_flops_per_s: speed("f64", from.get_f64_flops_per_s())?,
        i8_flops_per_s: speed("i8", from.get_i8_flops_per_s())?,
        store_bytes: from.get_store_bytes(),
        tasks_max: from.get_tasks_max(),
        isa: printable(read_text("isa", from.get_isa(), MAX_ISA_BYTES)?),
        works: from.get_works(),
    })
}

fn write_task(task: &Task, mut to: wire::task::Builder<'_>) {
    to.set_id(task.id);
    to.set_priority(task.priority);
    // Zero means none, so a deadline that has all but passed is sent as one millisecond.
    let deadline_ms = task.deadline.map_or(0, |left| u32::try_from(left.as_millis()).unwrap_or(u32::MAX).max(1));
    to.set_deadline_ms(deadline_ms);
    if let Some(trace) = task.trace {
        to.set_trace(trace.to_string());
    }
    operation::write(task.operation, &task.operands, to.init_operation());
}

fn read_task(from: wire::task::Reader<'_>) -> Result<Message, WireError> {
    let id = from.get_id();
    let Some((operation, operands)) = operation::read(from.get_operation())? else {
        return Ok(Message::UnknownTask(id));
    };
    let deadline = match from.get_deadline_ms() {
        0 => None,
        ms => Some(Duration::from_millis(u64::from(ms))),
    };
    let (priority, trace) = (from.get_priority(), read_trace(from.get_trace()));
    Ok(Message::Task(Task { id, priority, deadline, operation, operands, trace }))
}

fn write_shape(shape: &Shape, mut to: wire::shape::Builder<'_>) {
    to.set_dtype(match shape.dtype {
        DType::F16 => wire::DType::F16,
        DType::Bf16 => wire::DType::Bf16,
        DType::F32 => wire::DType::F32,
        DType::F64 => wire::DType::F64,
        DType::I8 => wire::DType::I8,
        DType::I32 => wire::DType::I32,
    });
    to.set_rows(shape.rows);
    to.set_cols(shape.cols);
}

fn read_shape(from: wire::shape::Reader<'_>) -> Result<Shape, WireError> {
    let dtype = match from.get_dtype().map_err(|unknown| unknown_variant("dtype", unknown.0))? {
        wire::DType::F16 => DType::F16,
        wire::DType::Bf16 => DType::Bf16,
        wire::DType::F32 => DType::F32,
        wire::DType::F64 => DType::F64,
        wire::DType::I8 => DType::I8,
        wire::DType::I32 => DType::I32,
    };
    Shape::new(dtype, from.get_rows(), from.get_cols())
}
