@0xc3f5a9d2176be840;
# A node's advert to its pool: one message on the gossip topic `/pangea/pool/1`, signed by its source.
# Peer ids, digests and addresses travel in their binary forms.

struct Term {
  # Version of a mastership. Terms are ordered by counter, then by peer id; a higher term fences lower ones.
  counter @0 :UInt64;          # below 2^62
  master @1 :Data;             # peer id, at most 64 bytes
}

struct LayerSpeed {
  weightBytesPerS @0 :Float64; # packed weights read per second while decoding
  macsPerS @1 :Float64;        # multiply-accumulates per second while reading a prompt
}

struct Link {
  to @0 :Data;                 # peer id
  rttNanos @1 :UInt64;         # 0: unknown
  bytesPerS @2 :Float64;       # what the link can carry; 0: unknown
  transport @3 :Text;          # `tcp` or `quic`; at most 16 bytes
  foundBy @4 :Text;            # `mdns`, `manual`, `gossip` or `incoming`; at most 16 bytes
  sentBytesPerS @5 :Float64;   # bytes that the author sends to `to` now, per second, averaged over the last 3 s; 0: none, or
                               # unknown. It travels with adverts that are sent anyway: a reader sees one that is up to 3 s older
}

struct Layers {
  # Layer range, from 0; `end` is exclusive; never empty.
  first @0 :UInt32;
  end @1 :UInt32;
}

struct ModelSize {
  layers @0 :UInt32;
  width @1 :UInt32;            # elements of the activations of one position
  context @2 :UInt32;          # largest number of positions of a session
  layerBytes @3 :UInt64;       # bytes of the weights of one layer
  embeddingBytes @4 :UInt64;   # 0: the head is the same tensor
  headBytes @5 :UInt64;
  positionBytes @6 :UInt32;    # bytes of keys and values of one position in one layer
  activeLayerBytes @7 :UInt64; # bytes of a layer's weights that one position is computed with; 0: all, as without experts
}

struct Model {
  digest @0 :Data;             # 32 bytes
  name @1 :Text;               # at most 128 bytes
  served @2 :Bool;
  whole @3 :Bool;
  split @4 :Bool;
  pinned @5 :Layers;           # null: none
  size @6 :ModelSize;
  serving @7 :Bool;            # whether the node answers requests to it with all layers of its own
  places @8 :UInt8;            # if serving: answers that it generates at once
  running @9 :UInt16;          # answers that it generates now
  waiting @10 :UInt16;         # answers that wait for a place
  tokensPerS @11 :UInt16;      # of a single answer; 0: not measured
  unloaded @12 :Bool;          # whether the node has unloaded it because nobody used it; a request loads it
}

struct Stage {
  model @0 :Data;              # digest
  layers @1 :Layers;
  epoch @2 :UInt64;
  sessionBytes @3 :UInt64;     # memory for the sessions of the stage
  state :union {
    loading @4 :Void;
    ready @5 :Void;
    fetching :group {
      done @6 :UInt64;         # bytes
      total @7 :UInt64;        # bytes
    }
    failed @8 :Text;           # why, at most 256 bytes
  }
  brokenEpoch @9 :UInt64;      # newest placement whose chain broke at this stage while its layers are loaded; 0: none
  pace @10 :Pace;              # null: not measured
}

struct Pace {
  # How fast a stage of one chain was, as its node measured it: means of its last frames; 0: not measured.
  epoch @0 :UInt64;            # placement whose chain was measured; 0: the chain of this node alone
  stepNanos @1 :UInt64;        # this stage, for one token of a single answer
  awayNanos @2 :UInt64;        # from the end of that until the answer's next frame
  promptRowNanos @3 :UInt64;   # this stage, per token of a prompt
}

struct PlacedStage {
  peer @0 :Data;
  layers @1 :Layers;
}

struct Placement {
  model @0 :Data;              # digest
  name @1 :Text;               # at most 128 bytes
  epoch @2 :UInt64;
  term @3 :Term;
  stages @4 :List(PlacedStage); # 1 to 256, contiguous from layer 0
}

struct Refusal {
  model @0 :Data;              # digest
  why @1 :Text;                # for people, at most 1024 bytes
}

struct DropRecord {
  # Whether the pool has dropped a model; the record with the highest version counts.
  model @0 :Data;              # digest
  version @1 :UInt64;
  dropped @2 :Bool;
}

struct Advert {
  version @0 :UInt16;          # of this message: 1
  peer @1 :Data;               # the author, who signed the message
  incarnation @2 :UInt64;      # start of the node, in milliseconds since 1970
  sequence @3 :UInt64;         # increases with every advert of one incarnation
  name @4 :Text;               # at most 64 bytes
  term @5 :Term;               # current term; null: none
  counter @6 :UInt64;          # highest counter of any known term; below 2^62
  forceMaster @7 :Bool;
  uptimeMs @8 :UInt64;
  works @9 :Bool;              # whether the node computes for others
  numerics @10 :UInt32;        # version of the bits that the node's engine computes
  addresses @11 :List(Data);   # multiaddrs that the node listens at: at most 16, of 256 bytes each
  device @12 :Text;            # at most 64 bytes
  threads @13 :UInt16;
  memoryBytes @14 :UInt64;
  f32FlopsPerS @15 :Float64;
  speed @16 :LayerSpeed;       # null: not measured yet
  links @17 :List(Link);       # at most 512
  models @18 :List(Model);     # at most 64
  stages @19 :List(Stage);     # at most 64
  placements @20 :List(Placement); # at most 64
  refusals @21 :List(Refusal); # of a master: models that the live nodes cannot hold; at most 64
  certificate @22 :Data;       # proof that the author belongs to the pool, signed with the pool's key; empty in a pool
                               # without a key. It is checked before any other field is read
  drops @23 :List(DropRecord); # what the author knows of dropped models; at most 64
  wanted @24 :List(Data);      # digests of models for which requests wait at the author; at most 16
  software @25 :Text;          # version of the author's binary; at most 32 bytes
  votes @26 :Bool;             # whether the node takes part in votes on answers
  bits @27 :Text;              # profile by which its engine's results are compared by value; empty: they have the bits of `numerics`;
                               # at most 32 bytes
}
