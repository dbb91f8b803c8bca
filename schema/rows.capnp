@0x9c51e7d20ab4f386;
# Messages of the protocol `/pangea/rows/1`. The coordinator of a session asks the node of a stage, whose bits are not exact, for the
# rows that the stage gave in it. Every message is the header of one frame; rows (32-bit floats, little-endian) follow the header raw.
#
# The stage has signed a root over the rows (pangea-compute, `commit`); the asking node checks them against it.

using Task = import "task.capnp";
using Session = import "session.capnp";

struct Wanted {
  session @0 :Session.SessionId;
  layers @1 :Session.LayerRange;  # of the stage
}

struct Chunk {
  total @0 :UInt64;            # bytes of the whole answer
  offset @1 :UInt64;           # bytes from the start of the answer to this payload
}

struct Refusal {
  kind @0 :Task.ErrorKind;     # notFound: this node does not have them, or the asking node did not coordinate the session
  message @1 :Text;            # at most 1024 bytes
}

struct RowsMessage {
  union {
    wanted @0 :Wanted;         # question: all rows of the stage, from the first position
    chunk @1 :Chunk;           # answer, with payload: the bytes asked for, in order, in one or more frames
    refusal @2 :Refusal;       # answer: no bytes follow, and why
  }
}
