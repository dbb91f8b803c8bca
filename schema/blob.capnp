@0xe3a1c84b7d2f9056;
# What two nodes say on a `/pangea/blob/1` stream. The node that opened the stream asks, the other answers, in the order
# of the questions; several may wait. Every message is the header of one frame; bytes of files follow it raw.
#
# A model is named by the digest of its manifest (pangea-compute, `model::manifest`), which lists the pieces of the file
# and the BLAKE3 hashes of their parts. Whoever asked checks everything against it.

using Digest = import "task.capnp".Digest;
using ErrorKind = import "task.capnp".ErrorKind;

struct Part {
  model @0 :Digest;
  piece @1 :UInt32;            # its place in the manifest
  part @2 :UInt32;             # of the piece, from 0
}

struct Chunk {
  total @0 :UInt64;            # bytes of the whole answer
  offset @1 :UInt64;           # bytes; the payload belongs there
}

struct Refusal {
  kind @0 :ErrorKind;          # notFound: it is not here; overloaded: not now
  message @1 :Text;            # at most 1024 bytes
}

struct BlobMessage {
  union {
    manifest @0 :Digest;       # question: the manifest of this model
    have @1 :Digest;           # question: which parts are there; one bit each, in the manifest's order, lowest first
    part @2 :Part;             # question: one part
    chunk @3 :Chunk;           # answer, payload: the bytes asked for, in order, in as many frames as it takes
    refusal @4 :Refusal;       # answer: they do not come, and why
  }
}
