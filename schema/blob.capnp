@0xe3a1c84b7d2f9056;
# Messages of the protocol `/pangea/blob/1`. The node that opened the stream asks; the other node answers in the order of
# the questions, of which several may be outstanding. Every message is the header of one frame; bytes of files follow the
# header raw.
#
# A model is named by the digest of its manifest (pangea-compute, `model::manifest`), which lists the pieces of the file
# and the BLAKE3 hashes of their parts. The asking node checks every answer against the manifest.

using Digest = import "task.capnp".Digest;
using ErrorKind = import "task.capnp".ErrorKind;

struct Part {
  model @0 :Digest;
  piece @1 :UInt32;            # index of the piece in the manifest
  part @2 :UInt32;             # index of the part in the piece
  trace @3 :Text;              # of the span that asks, as in `traceparent` of W3C Trace Context, 55 bytes; empty: none
}

struct Chunk {
  total @0 :UInt64;            # bytes of the whole answer
  offset @1 :UInt64;           # bytes from the start of the answer to this payload
}

struct Refusal {
  kind @0 :ErrorKind;          # notFound: this node does not have it; overloaded: ask again later
  message @1 :Text;            # at most 1024 bytes
}

struct BlobMessage {
  union {
    manifest @0 :Digest;       # question: the manifest of this model
    have @1 :Digest;           # question: the parts held; one bit each, in the manifest's order, lowest first
    part @2 :Part;             # question: one part
    chunk @3 :Chunk;           # answer, with payload: the bytes asked for, in order, in one or more frames
    refusal @4 :Refusal;       # answer: no bytes follow, and why
  }
}
