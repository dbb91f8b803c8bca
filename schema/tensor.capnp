@0x99adb754ed11234b;
# Tensors as programs see them, and how their bytes are sent to and read from a node.
# Bytes of a tensor are always row-major and little-endian, without padding between rows.
#
# Evolution: fields, methods and enumerants are only added, at the end, with defaults that mean
# "as before". Nothing is renumbered, retyped or removed.

const chunkBytes :UInt32 = 1048576;
# Bytes of one chunk of a bulk transfer. A receiver accepts chunks of at most twice this size; a
# much larger message closes the connection.

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
  # A tensor held by a node. Dropping the capability frees the tensor. A result that is still
  # being computed is a Tensor, too.

  info @0 () -> (info :TensorInfo);
  # Returns as soon as the shapes of the operands are known.

  read @1 (sink :ByteSink, offset :UInt64, length :UInt64) -> ();
  # Writes `length` bytes from byte `offset` to `sink`, in order, in chunks, at most a
  # window ahead of what the sink has taken. Waits until a result is computed. Returns when all
  # bytes are sent: the last chunks have arrived then, but the sink may still be processing them.
}

interface TensorSink {
  # A running upload. Dropping the capability before `finish` frees the bytes sent so far.

  write @0 (chunk :Data) -> stream;
  # The next bytes of the tensor.

  finish @1 () -> (tensor :Tensor);
  # Fails unless exactly the promised bytes were written.
}

interface ByteSink {
  # The receiver of the bytes of a read.

  write @0 (chunk :Data) -> stream;
  # The next bytes.
}
