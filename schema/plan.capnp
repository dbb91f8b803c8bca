@0xd1b7c35e8a904f26;
# Where the layers of a model would be placed now, and where they are placed.
#
# Evolution: fields, methods and enumerants are only added, at the end, with defaults that mean
# "as before". Nothing is renumbered, retyped or removed.

struct ModelPlan {
  model @0 :Text;
  # Name of the model in requests.
  layers @1 :UInt32;
  # Number of layers.
  weightBytes @2 :UInt64;
  # Bytes of all weights.
  sessionBytes @3 :UInt64;
  # Smallest number of bytes for sessions.
  best @4 :Chain;
  # The chain that a master would choose now; no stages where the model does not fit.
  reason @5 :Text;
  # Why `best` was chosen, or what is missing where there is none.
  alternatives @6 :List(Chain);
  # The best chains of other kinds, the fastest first.
  current @7 :Chain;
  # The chain of the master's placement; no stages where there is no placement.
  epoch @8 :UInt64;
  # Epoch of `current`.
  ready @9 :Bool;
  # Whether all stages of `current` are ready.
}

struct Chain {
  stages @0 :List(Stage);
  decodeTokensPerS @1 :Float64;
  # Predicted tokens per second of a single stream; 0 where there is no prediction.
  promptTokensPerS @2 :Float64;
  # Predicted tokens per second of a long prompt.
}

struct Stage {
  peer @0 :Text;
  name @1 :Text;
  # Name that the node gives itself.
  first @2 :UInt32;
  end @3 :UInt32;
  # Layers of the stage, from 0; `end` is exclusive.
}
