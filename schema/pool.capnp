@0xc3f5a9d2176be840;
# What a node says of itself to its pool: one message on the gossip topic `/pangea/pool/1`, signed by its source.
# Peer ids, digests and addresses travel in their binary forms.

struct Term {
  # The version of a mastership; the higher one fences the lower, first by counter, then by peer id.
  counter @0 :UInt64;          # below 2^62
  master @1 :Data;             # peer id, at most 64 bytes
}

struct LayerSpeed {
  weightBytesPerS @0 :Float64; # packed weights read while decoding
  macsPerS @1 :Float64;        # multiply-accumulates of a prompt
}

struct Link {
  to @0 :Data;                 # peer id
  rttNanos @1 :UInt64;         # 0: not known yet
  bytesPerS @2 :Float64;       # 0: not known yet
  transport @3 :Text;          # `tcp` or `quic`; at most 16 bytes
  foundBy @4 :Text;            # `mdns`, `manual`, `gossip` or `incoming`; at most 16 bytes
}

struct Layers {
  # From 0, the end exclusive, never empty.
  first @0 :UInt32;
  end @1 :UInt32;
}

struct ModelSize {
  layers @0 :UInt32;
  width @1 :UInt32;            # elements of one position's activations
  context @2 :UInt32;          # the most positions of a session
  layerBytes @3 :UInt64;       # weights of one layer
  embeddingBytes @4 :UInt64;   # 0: the head is the same tensor
  headBytes @5 :UInt64;
  positionBytes @6 :UInt32;    # keys and values of one position in one layer
}

struct Model {
  digest @0 :Data;             # 32 bytes
  name @1 :Text;               # at most 128 bytes
  served @2 :Bool;
  whole @3 :Bool;
  split @4 :Bool;
  pinned @5 :Layers;           # null: none
  size @6 :ModelSize;
}

struct Stage {
  model @0 :Data;              # digest
  layers @1 :Layers;
  epoch @2 :UInt64;
  sessionBytes @3 :UInt64;     # memory for its sessions
  state :union {
    loading @4 :Void;
    ready @5 :Void;
    fetching :group {
      done @6 :UInt64;         # bytes
      total @7 :UInt64;        # bytes
    }
    failed @8 :Text;           # why, at most 256 bytes
  }
  brokenEpoch @9 :UInt64;      # the newest placement whose chain of stages broke here, the layers themselves being fine; 0: none
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

struct Standing {
  version @0 :UInt16;          # of this message: 1
  peer @1 :Data;               # who says this: the signed source of the message
  incarnation @2 :UInt64;      # milliseconds since 1970 when it started
  sequence @3 :UInt64;         # grows with every advert of one run
  name @4 :Text;               # at most 64 bytes
  term @5 :Term;               # the one it lives under now; null: none
  counter @6 :UInt64;          # the highest of any term that it knows of; below 2^62
  forceMaster @7 :Bool;
  uptimeMs @8 :UInt64;
  works @9 :Bool;              # whether it computes for others
  numerics @10 :UInt32;        # version of the bits that its engine computes
  addresses @11 :List(Data);   # multiaddrs it listens at: at most 16, of 256 bytes each
  device @12 :Text;            # at most 64 bytes
  threads @13 :UInt16;
  memoryBytes @14 :UInt64;
  f32FlopsPerS @15 :Float64;
  speed @16 :LayerSpeed;       # null: not measured yet
  links @17 :List(Link);       # at most 512
  models @18 :List(Model);     # at most 64
  stages @19 :List(Stage);     # at most 64
  placements @20 :List(Placement); # at most 64
  refusals @21 :List(Refusal); # of a master: models that no nodes that are there can hold; at most 64
}
