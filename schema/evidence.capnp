@0xa7d40c1be92f6358;
# Messages of the protocol `/pangea/evidence/1`. The node that opened the stream either tells the other accusations and closes
# it, or asks for evidence, which the other node answers. Every message is the header of one frame; accusations and bytes of
# evidence follow the header raw.
#
# An accusation has one canonical form of 195 bytes, which its accuser signed (pangea-node, `evidence::accusation`). Evidence
# is named by the BLAKE3 hash of its bytes; the asking node checks them against it.

using Digest = import "task.capnp".Digest;
using ErrorKind = import "task.capnp".ErrorKind;

struct Chunk {
  total @0 :UInt64;            # bytes of the whole answer
  offset @1 :UInt64;           # bytes from the start of the answer to this payload
}

struct Refusal {
  kind @0 :ErrorKind;          # notFound: this node does not have it
  message @1 :Text;            # at most 1024 bytes
}

struct EvidenceMessage {
  union {
    told @0 :UInt32;           # with payload: this number of accusations
    wanted @1 :Digest;         # question: this evidence
    chunk @2 :Chunk;           # answer, with payload: the bytes asked for, in order, in one or more frames
    refusal @3 :Refusal;       # answer: no bytes follow, and why
  }
}
