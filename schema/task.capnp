@0xb6c1a6e5f0d94e21;
# Messages of the protocol `/pangea/task/1`. The node that opened the stream is the coordinator,
# the other node is the worker. Every message is the header of one frame; a frame's payload (tensor bytes,
# row-major, little-endian) follows the header raw and is never part of this message.

enum DType {
  f16 @0;
  bf16 @1;
  f32 @2;
  f64 @3;
  i8 @4;
  i32 @5;
}

enum ErrorKind {
  invalidInput @0;
  unauthorized @1;
  notFound @2;
  overloaded @3;
  unavailable @4;
  deadlineExceeded @5;
  cancelled @6;
  verificationFailed @7;
  internal @8;
}

struct Digest {
  # BLAKE3 of dtype, shape and bytes, as four little-endian words.
  w0 @0 :UInt64;
  w1 @1 :UInt64;
  w2 @2 :UInt64;
  w3 @3 :UInt64;
}

struct Shape {
  dtype @0 :DType;
  rows @1 :UInt64;
  cols @2 :UInt64;
}

struct TaskHello {
  # What a node says of itself; the first message each way.
  version @0 :UInt16;          # of this protocol: 1
  name @1 :Text;               # at most 64 bytes
  software @2 :Text;           # such as "pangea 0.1.0"; at most 64 bytes
  threads @3 :UInt16;          # compute threads
  f32FlopsPerS @4 :Float64;
  f64FlopsPerS @5 :Float64;
  i8FlopsPerS @6 :Float64;
  storeBytes @7 :UInt64;       # bytes of operands that the worker keeps for this peer
  tasksMax @8 :UInt16;         # tasks in flight at once from this peer
  isa @9 :Text;                # instruction set of its kernels; at most 16 bytes
  works @10 :Bool;             # whether the node takes tasks at all
}

struct OperandChunk {
  digest @0 :Digest;
  shape @1 :Shape;             # of the whole operand
  offset @2 :UInt64;           # bytes from the start of the operand to this payload
}

struct Task {
  id @0 :UInt64;               # chosen by the coordinator, unique on this stream
  priority @1 :Int8;           # tasks of higher priority start first
  deadlineMs @2 :UInt32;       # milliseconds from receipt; 0: no deadline
  operation :union {
    unset @3 :Void;            # an operation that the reader does not know: the task is refused as InvalidInput
    matmul :group {            # C[m, n] = A[m, k] · B[k, n]
      a @4 :Digest;
      b @5 :Digest;
    }
    add :group {               # C = A + B, element by element
      a @6 :Digest;
      b @7 :Digest;
    }
  }
  trace @8 :Text;              # of the span that asks, as in `traceparent` of W3C Trace Context, 55 bytes; empty: none
}

struct ResultChunk {
  task @0 :UInt64;
  shape @1 :Shape;             # of the whole result
  offset @2 :UInt64;           # bytes
  computeNanos @3 :UInt64;     # compute time of the whole task, without waiting
  digest @4 :Digest;           # of the whole result; in its last chunk only
  signature @5 :Data;          # 64 bytes, of the worker over operation, operands and digest; in the last chunk only
}

struct Failure {
  task @0 :UInt64;
  kind @1 :ErrorKind;
  message @2 :Text;            # at most 1024 bytes
  retryAfterMs @3 :UInt32;     # of an overload: milliseconds after which to try again; 0: the coordinator decides
}

struct Missing {
  # Operands of a task that the worker does not hold, or no longer holds: to be sent again.
  task @0 :UInt64;
  digests @1 :List(Digest);    # at most 2
}

struct Load {
  queuedNanos @0 :UInt64;      # predicted time until a task sent now would start
}

struct Probe {
  nonce @0 :UInt64;
  total @1 :UInt64;            # payload bytes in all the frames of this probe
  last @2 :Bool;               # answered with `probed` once this frame is read
}

struct TaskMessage {
  union {
    hello @0 :TaskHello;        # both ways, first
    operand @1 :OperandChunk;  # coordinator to worker, payload
    task @2 :Task;             # coordinator to worker
    cancel @3 :UInt64;         # coordinator to worker: task
    release @4 :Digest;        # coordinator to worker: no job of the coordinator needs this operand
    result @5 :ResultChunk;    # worker to coordinator, payload
    failure @6 :Failure;       # worker to coordinator
    missing @7 :Missing;       # worker to coordinator
    evicted @8 :Digest;        # worker to coordinator: operand no longer held
    load @9 :Load;             # worker to coordinator
    probe @10 :Probe;          # coordinator to worker, payload
    probed @11 :UInt64;        # worker to coordinator: nonce
    goodbye @12 :Text;         # either way: why this side closes the stream, at most 256 bytes
    started @13 :UInt64;       # worker to coordinator: the task left the queue and is being computed
  }
}
