@0x9d7f40c9c93d990c;
# Language models as programs see them: status, requests and streamed answers.
#
# Evolution: fields, methods and enumerants are only added, at the end, with defaults that mean
# "as before". Nothing is renumbered, retyped or removed.

interface Model {
  # A loaded model. Dropping the capability does not unload the model.

  generate @0 (request :GenerationRequest, sink :TokenSink) -> (generation :Generation);
  # Starts an answer and streams it to `sink`, with flow control.
  # InvalidInput for a request that cannot be answered, Overloaded where the model's queue is full.

  status @1 () -> (status :ModelStatus);
}

interface TokenSink {
  # The receiver of a streamed answer.

  append @0 (piece :Piece) -> stream;
}

interface Generation {
  # A running generation. Dropping the capability cancels the generation.

  summary @0 () -> (summary :Summary);
  # Waits until the sink has taken the last piece; fails as the generation failed.

  cancel @1 () -> ();
  # Ends the generation. Calls that wait for the summary fail with Cancelled.
}

struct ModelStatus {
  name @0 :Text;
  # Name of the model in requests.
  state @1 :Text;
  # `absent` (to be fetched at the first request), `loading`, `ready` or `failed`.
  why @2 :Text;
  # Why the model failed or is still absent; otherwise empty.
  architecture @3 :Text;
  # Architecture as GGUF names it. This field and those that follow are set for ready models only.
  layers @4 :UInt32;
  context @5 :UInt64;
  # Largest number of tokens of prompt and answer together.
  vocabulary @6 :UInt64;
  memoryBytes @7 :UInt64;
  # Bytes of the weights in memory.
  running @8 :UInt32;
  # Generations that are running.
  waiting @9 :UInt32;
  # Generations that wait in the queue.
}

struct Message {
  role @0 :Text;
  # `system`, `user`, `assistant`, or another role of the model's template.
  content @1 :Text;
}

struct GenerationRequest {
  prompt :union {
    text @0 :Text;
    # A text to continue.
    messages @1 :List(Message);
    # A conversation, formatted with the model's chat template.
    tokens @2 :List(UInt32);
    # Token ids, used as they are.
  }
  sampling @3 :Sampling;
  maxTokens @4 :UInt64;
  # Largest number of tokens of the answer; 0: until the model ends the answer or the context is full.
  stop @5 :List(Text);
  # Stop strings: the answer ends before the first of them.
  jsonSchema @6 :Text;
  # JSON Schema of the answer, `{}` for any object; empty: any text.
}

struct Sampling {
  # How tokens are chosen. Equal requests give equal answers.

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
  # Number of last tokens that the penalties apply to; 0: all.
  presencePenalty @7 :Float32;
  frequencyPenalty @8 :Float32;
  logitBias @9 :List(TokenBias);
  seed @10 :UInt64;
}

struct TokenBias {
  token @0 :UInt32;
  bias @1 :Float32;
  # Addend of the token's logit.
}

struct Piece {
  text @0 :Text;
  # Whole characters; empty while the start of a character or of a stop string is held back.
  tokens @1 :List(UInt32);
  # Token ids of this piece.
  finish @2 :Text;
  # `stop` or `length` in the last piece; empty in all others.
}

struct Summary {
  promptTokens @0 :UInt64;
  cachedTokens @1 :UInt64;
  # Prompt tokens whose keys and values an earlier request had computed.
  answerTokens @2 :UInt64;
  queuedS @3 :Float64;
  # Seconds from arrival to the first step.
  promptS @4 :Float64;
  # Seconds from the first step to the first token.
  answerS @5 :Float64;
  # Seconds from the first token to the last.
  verdict @6 :Text = "unchecked";
  # Verdict of the answer: `local`, `verified`, `audited`, `tolerance-checked` or `unchecked`.
  stages @7 :List(AnswerStage);
  # Nodes and their layers at the end of the answer.
  failovers @8 :UInt64;
  # Failovers during the answer.
  receipts @9 :List(Text);
  # Ids of the receipts that the node keeps for the answer.
}

struct AnswerStage {
  peer @0 :Text;
  first @1 :UInt32;
  end @2 :UInt32;
  # Layers of the stage, from 0; `end` is exclusive.
}
