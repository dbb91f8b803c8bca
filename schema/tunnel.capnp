@0xb1d5e83c6a0f4279;
# Messages of the protocol `/pangea/http/1`: one request to a model, tunnelled whole from the node that a client asked to a node
# that serves the model. A stream carries one request and its answer; who ends it early wants nothing more of it. Every message is
# the header of one frame; bytes of bodies follow the header raw.
#
# A request names its route and its model and has a JSON body. It has no headers, so that no credentials travel, and no route of
# the node's own administration exists here.

using Digest = import "task.capnp".Digest;
using ErrorKind = import "task.capnp".ErrorKind;

enum AskRoute {
  chatCompletions @0;          # /v1/chat/completions
  completions @1;              # /v1/completions
  embeddings @2;               # /v1/embeddings
  responses @3;                # /v1/responses
  messages @4;                 # /v1/messages
  countTokens @5;              # /v1/messages/count_tokens
  ollamaChat @6;               # /api/chat
  ollamaGenerate @7;           # /api/generate
  ollamaEmbed @8;              # /api/embed
  ollamaEmbeddings @9;         # /api/embeddings
}

enum AnswerForm {
  document @0;                 # application/json
  events @1;                   # text/event-stream
  lines @2;                    # application/x-ndjson
}

struct Ask {
  route @0 :AskRoute;
  model @1 :Digest;            # the model, whatever the body names
  bodyBytes @2 :UInt32;        # length of the JSON body, at least 1
  trace @3 :Text;              # of the span that asks, as in `traceparent` of W3C Trace Context, 55 bytes; empty: none
}

struct Counted {
  promptTokens @0 :UInt32;     # tokens of the prompt, once it is computed
  answerTokens @1 :UInt32;     # tokens of the answer so far
}

struct Failure {
  kind @0 :ErrorKind;
  status @1 :UInt16;           # HTTP status, 400 to 599
  message @2 :Text;            # at most 1024 bytes
  param @3 :Text;              # the field of the request that is wrong, at most 128 bytes; empty for none
  code @4 :Text;               # OpenAI's machine-readable code, at most 64 bytes; empty for none
  retryAfterMs @5 :UInt32;     # delay after which the request may be taken; 0 for none
}

struct TunnelMessage {
  union {
    ask @0 :Ask;               # first of a stream, with payload: the first bytes of the body
    more @1 :Void;             # with payload: the next bytes of the body
    working @2 :Counted;       # the answer is being computed: sent whenever nothing else was sent for a while
    head @3 :AnswerForm;       # the answer begins
    chunk @4 :Counted;         # with payload: the next bytes of the answer
    end @5 :Counted;           # the answer is complete
    failure @6 :Failure;       # there is no answer, or no more of it
  }
}
