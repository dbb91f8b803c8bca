@0x9d7f40c9c93d990c;
# Language models as programs see them: which a node serves, what is asked of one, and its answer
# as it comes.
#
# Evolution: fields, methods and enumerants are only added, at the end, with defaults that mean
# "as before". Nothing is renumbered, retyped or removed.

interface Model {
  # A model that is loaded. Dropping it unloads nothing.

  generate @0 (request :GenerationRequest, sink :TokenSink) -> (generation :Generation);
  # Begins an answer and sends it to `sink`, piece by piece, never more than the sink takes.
  # InvalidInput for what is wrong with the request, Overloaded where the model's queue is full.

  status @1 () -> (status :ModelStatus);
}

interface TokenSink {
  # Where an answer goes.

  append @0 (piece :Piece) -> stream;
}

interface Generation {
  # An answer under way. Dropping it cancels it.

  summary @0 () -> (summary :Summary);
  # Waits until the sink has taken the last piece; fails as the answer failed.

  cancel @1 () -> ();
  # Ends it. Whoever waits for the summary gets Cancelled.
}

struct ModelStatus {
  name @0 :Text;
  # What requests call it.
  state @1 :Text;
  # `absent` (fetched at its first request), `loading`, `ready` or `failed`.
  why @2 :Text;
  # Why it failed, or is still absent; else empty.
  architecture @3 :Text;
  # As GGUF names it. This and what follows is known of ready models only.
  layers @4 :UInt32;
  context @5 :UInt64;
  # The most tokens of prompt and answer together.
  vocabulary @6 :UInt64;
  memoryBytes @7 :UInt64;
  # Of the weights.
  running @8 :UInt32;
  # Answers being generated.
  waiting @9 :UInt32;
  # Answers that wait for their turn.
}

struct Message {
  role @0 :Text;
  # `system`, `user`, `assistant`, or what else the model's template knows.
  content @1 :Text;
}

struct GenerationRequest {
  prompt :union {
    text @0 :Text;
    # A text, to be gone on with.
    messages @1 :List(Message);
    # A conversation, brought into the model's own form.
    tokens @2 :List(UInt32);
    # Token ids, as they are.
  }
  sampling @3 :Sampling;
  maxTokens @4 :UInt64;
  # The most tokens of the answer; 0: until the model ends it, or its context does.
  stop @5 :List(Text);
  # Texts at which the answer ends; they are not part of it.
  jsonSchema @6 :Text;
  # A JSON Schema that the answer fits, `{}` for any object; empty: any text.
}

struct Sampling {
  # How tokens are chosen. The same request gives the same answer.

  temperature @0 :Float32 = 0.8;
  # 0 is greedy.
  topK @1 :UInt32 = 40;
  # 0 is off.
  topP @2 :Float32 = 0.95;
  # 1 is off.
  minP @3 :Float32 = 0.05;
  # 0 is off.
  typicalP @4 :Float32 = 1;
  # 1 is off.
  repetitionPenalty @5 :Float32 = 1;
  # 1 is off.
  repetitionWindow @6 :UInt32;
  # How many of the last tokens the penalties look at; 0: all.
  presencePenalty @7 :Float32;
  frequencyPenalty @8 :Float32;
  logitBias @9 :List(TokenBias);
  seed @10 :UInt64;
}

struct TokenBias {
  token @0 :UInt32;
  bias @1 :Float32;
  # Added to the token's logit.
}

struct Piece {
  text @0 :Text;
  # Whole characters; may be empty while something is held back.
  tokens @1 :List(UInt32);
  # Those chosen for it.
  finish @2 :Text;
  # In the last piece `stop` or `length`, before it empty.
}

struct Summary {
  promptTokens @0 :UInt64;
  cachedTokens @1 :UInt64;
  # Of these, computed by an earlier request.
  answerTokens @2 :UInt64;
  queuedS @3 :Float64;
  # Seconds until the first step.
  promptS @4 :Float64;
  # Seconds from then to the first token.
  answerS @5 :Float64;
  # Seconds from the first token to the last.
  verdict @6 :Text = "unchecked";
  # How far it can be trusted: `local`, `verified`, `audited`, `tolerance-checked` or `unchecked`.
  stages @7 :List(AnswerStage);
  # Who computed which layers, in the end.
  failovers @8 :UInt64;
  # How often it had to go on elsewhere.
  receipts @9 :List(Text);
  # Ids of the receipts that the node keeps of it.
}

struct AnswerStage {
  peer @0 :Text;
  first @1 :UInt32;
  end @2 :UInt32;
  # Its layers, counting from 0; the end is exclusive.
}
