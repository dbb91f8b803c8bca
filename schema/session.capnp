@0xd2a1f0b7c5e84936;
# Messages of the protocol `/pangea/session/1`, between the stages of a chain and the coordinator. A node sends on the
# streams that it opened and receives on those that it accepted. Every message is the header of one frame; a frame's
# payload (numbers, little-endian) follows the header raw and is never part of this message.

using Task = import "task.capnp";

struct SessionId {
  # Sixteen random bytes, as two little-endian words.
  w0 @0 :UInt64;
  w1 @1 :UInt64;
}

struct Chain {
  # One placement of one model.
  model @0 :Task.Digest;
  epoch @1 :UInt64;            # version of the placement; 0 where one node computes the model alone
}

struct LayerRange {
  first @0 :UInt32;            # from 0
  end @1 :UInt32;              # exclusive
}

struct Stage {
  peer @0 :Data;               # peer id
  layers @1 :LayerRange;
}

struct TokenValue {
  token @0 :UInt32;
  value @1 :Float32;
}

struct Sampling {
  temperature @0 :Float32;     # 0: greedy
  topK @1 :UInt64;             # 0: off
  topP @2 :Float32;            # 1: off
  minP @3 :Float32;            # 0: off
  typicalP @4 :Float32;        # 1: off
  repetitionPenalty @5 :Float32;  # 1: off
  repetitionWindow :union {
    all @6 :Void;
    last @7 :UInt64;           # tokens
  }
  presencePenalty @8 :Float32; # 0: off
  frequencyPenalty @9 :Float32;  # 0: off
  logitBias @10 :List(TokenValue);  # at most 1024
  seed @11 :UInt64;
  logprobs :union {
    none @12 :Void;
    most @13 :UInt8;           # alternatives per token, at most 20
  }
}

struct Open {
  # Payload: tokens of the prompt and tokens chosen so far, UInt32 each.
  session @0 :SessionId;       # of the first choice; the others' follow, counted as one little-endian number
  coordinator @1 :Data;        # peer id
  model @2 :Task.Digest;
  epoch @3 :UInt64;
  numerics @4 :UInt32;
  stages @5 :List(Stage);      # at most 64; contiguous from layer 0
  choices @6 :UInt16;
  sequence :union {
    none @7 :Void;             # coordinator to first stage
    first @8 :UInt64;          # along the chain: the first stage's number of the first choice's sequence
  }
  promptLen @9 :UInt32;
  maxNewTokens @10 :UInt32;    # largest number of chosen tokens, counted from promptLen
  sampling @11 :Sampling;
  format :union {
    text @12 :Void;
    jsonObject @13 :Void;
    jsonSchema @14 :Text;      # at most 32 KiB
  }
  promptLogprobs @15 :Bool;
  trace @16 :Text;             # of the span that asks, as in `traceparent` of W3C Trace Context, 55 bytes; empty: none
}

struct Refused {
  session @0 :SessionId;
  kind @1 :Task.ErrorKind;
  message @2 :Text;            # at most 1024 bytes
  retryAfter :union {
    never @3 :Void;
    ms @4 :UInt32;
  }
}

struct Close {
  session @0 :SessionId;
  commit @1 :Bool;             # whether the stages must sign what they computed
  positions @2 :UInt32;        # number of positions to sign, where `commit` is set
  chain @3 :Chain;             # that the session is at
}

struct Start {
  sequence @0 :UInt64;
  session @1 :SessionId;
  source :union {
    empty @2 :Void;
    fork @3 :Void;             # copies the first `tokens` positions of `from`, which remains
    take @4 :Void;             # takes over the positions of `from`, which ends
  }
  from @5 :UInt64;
  tokens @6 :UInt32;
}

struct FrameRows {
  sequence @0 :UInt64;
  start @1 :UInt32;            # position of the first row; a longer cache is truncated to this position
  rows @2 :UInt32;
  choose @3 :Bool;
  allLogits @4 :Bool;
  draft @5 :List(UInt32);      # drafted tokens, which are the last of the rows
}

struct Frame {
  # Payload: activations, Float32 [rows, width].
  epoch @0 :UInt64;
  model @1 :Task.Digest;
  number @2 :UInt64;           # increases by one with every frame of a chain
  firstStage @3 :Data;         # peer id of the first stage
  drops @4 :List(UInt64);      # at most 1024
  starts @5 :List(Start);      # at most 256
  rows @6 :List(FrameRows);    # at most 256
}

struct SteppedSequence {
  sequence @0 :UInt64;
  computed @1 :UInt32;
  chosen @2 :List(UInt32);
  ended @3 :Bool;
  failed @4 :Bool;
}

struct Stepped {
  epoch @0 :UInt64;
  model @1 :Task.Digest;
  number @2 :UInt64;
  advances @3 :List(SteppedSequence);  # at most 256
}

struct TokenOut {
  token @0 :UInt32;
  logprob :union {
    none @1 :Void;
    ln @2 :Float32;
  }
  top @3 :List(TokenValue);    # at most 20
}

enum EndReason {
  stop @0;
  length @1;
  grammarComplete @2;
}

struct Tokens {
  session @0 :SessionId;
  position @1 :UInt32;         # of the first token, counted from the session's first token
  tokens @2 :List(TokenOut);   # at most 256, those of the prompt included
  ended :union {
    no @3 :Void;
    because @4 :EndReason;
  }
  prompt @5 :List(TokenOut);
  drafted @6 :UInt32;
  accepted @7 :UInt32;
  cached @8 :UInt32;           # leading positions that an earlier session had computed
  computed @9 :UInt32;         # leading positions that are computed, while no token follows them; else 0
}

struct Failed {
  session @0 :SessionId;
  kind @1 :Task.ErrorKind;
  message @2 :Text;            # at most 1024 bytes
  chain @3 :Chain;             # that the session is at
}

struct Commit {
  # Payload: commitments.
  session @0 :SessionId;
  positions @1 :UInt32;        # number of positions, from the first
  chain @2 :Chain;             # that the session is at
}

struct SessionMessage {
  union {
    unset @0 :Void;            # malformed
    open @1 :Open;             # coordinator to first stage, and along the chain; payload
    accepted @2 :SessionId;    # first stage to coordinator
    refused @3 :Refused;       # first stage to coordinator
    close @4 :Close;           # coordinator to first stage, and along the chain
    frame @5 :Frame;           # stage to next stage; payload
    stepped @6 :Stepped;       # last stage to first stage
    tokens @7 :Tokens;         # last stage to coordinator
    failed @8 :Failed;         # stage to coordinator and first stage
    commit @9 :Commit;         # along the chain, from the last stage to the coordinator; payload
  }
}
