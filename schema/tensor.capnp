@0x99adb754ed11234b;
# Tensors as programs see them: what they are, and how their bytes go to and from a node.
# Bytes of a tensor are always row-major and little-endian, without padding between rows.
#
# Evolution: fields, methods and enumerants are only added, at the end, with defaults that mean
# "as before". Nothing is renumbered, retyped or removed.

const chunkBytes :UInt32 = 1048576;
# Bytes of one chunk of a bulk transfer. A receiver accepts any chunk of at most twice this; a
# message that is much larger costs the connection.

enum DType {
  f16 @0;
  bf16 @1;
  f32 @2;
  f64 @3;
  i8 @4;
  i32 @5;
}

struct TensorInfo {
  dtype @0 :DType;
  rows @1 :UInt64;
  cols @2 :UInt64;
  sizeBytes @3 :UInt64;
  # rows * cols * size of the dtype.
}

interface Tensor {
  # A tensor held by a node. Dropping the capability frees it. A product that is still being
  # computed is a Tensor, too.

  info @0 () -> (info :TensorInfo);
  # Known as soon as the shapes of what it is computed from are.

  read @1 (sink :ByteSink, offset :UInt64, length :UInt64) -> ();
  # Writes `length` bytes from byte `offset` to `sink`, in order, in chunks, never more than a
  # window ahead of what the sink has taken. Returns when all are sent: the last chunks have
  # arrived then, but the sink may still be busy with them. Waits for a product that is not
  # there yet.
}

interface TensorSink {
  # An upload under way. Dropping it before `finish` frees what was sent.

  write @0 (chunk :Data) -> stream;
  # The next bytes of the tensor.

  finish @1 () -> (tensor :Tensor);
  # Fails unless exactly the promised bytes were written.
}

interface ByteSink {
  # What a reader offers to be written to.

  write @0 (chunk :Data) -> stream;
  # The next bytes.
}
