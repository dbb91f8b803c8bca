@0xd1b7c35e8a904f26;
# Where the layers of a model would be, and where they are.
#
# Evolution: fields, methods and enumerants are only added, at the end, with defaults that mean
# "as before". Nothing is renumbered, retyped or removed.

struct ModelPlan {
  model @0 :Text;
  # The name that requests give.
  layers @1 :UInt32;
  # How many it has.
  weightBytes @2 :UInt64;
  # All its weights.
  sessionBytes @3 :UInt64;
  # What its sessions take at least.
  best @4 :Chain;
  # What a master would decide now; no stages where it fits nowhere.
  reason @5 :Text;
  # Why this one; where there is none, what is missing.
  alternatives @6 :List(Chain);
  # The best of other kinds, the fastest first.
  current @7 :Chain;
  # What the master has decided; no stages where it has decided nothing.
  epoch @8 :UInt64;
  # Of the current one.
  ready @9 :Bool;
  # Whether all its stages are.
}

struct Chain {
  stages @0 :List(Stage);
  decodeTokensPerS @1 :Float64;
  # Foretold tokens of a single stream per second; 0 where they cannot be.
  promptTokensPerS @2 :Float64;
  # Foretold tokens of a long prompt per second.
}

struct Stage {
  peer @0 :Text;
  name @1 :Text;
  # For people.
  first @2 :UInt32;
  end @3 :UInt32;
  # Its layers, counting from 0; the end is exclusive.
}
