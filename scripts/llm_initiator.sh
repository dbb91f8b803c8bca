#!/usr/bin/env bash
# menu: 19 Distributed Language Model Test > 4a Initiator: has the model, shows the address for the other device
#
# First device of the language model test: serves a model with its layers spread, waits for the responder, runs the tests.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/llm_test_session.sh"
ROLE=llm-initiator
PORT=${PORT:-7777}

usage() {
  cat <<'TEXT'
Usage: scripts/llm_initiator.sh [options]

First device of the language model test. Shows an address and waits for the other device to run
scripts/llm_responder.sh with it; then both compute answers together, also after one of them is killed.

Options (the environment variable does the same):
  --model MODEL       a .gguf file, or a model that `pangea models pull` downloads (smollm2; PANGEA_MODEL)
TEXT
  shared_options
}

parse_options "$@"
[ ${#OPERANDS[@]} -eq 0 ] || usage_error "unexpected argument '${OPERANDS[0]}'"

begin_session
# The node has a data directory of its own without models, so it gets the file's path.
if [ ! -f "$MODEL" ]; then
  named=${MODEL:-smollm2}
  MODEL=$("$PANGEA_BIN" models pull "$named" --json | json_value path)
  [ -n "$MODEL" ] || die "no model $named: name a .gguf file with --model"
fi

heading 'The same questions to this device alone'
chat "$SESSION/short-alone.txt" "$SHORT" 24 --model "$MODEL" || die "cannot ask the model: see $SESSION/commands.log"
chat "$SESSION/long-alone.txt" "$LONG" "$LONG_TOKENS" --model "$MODEL" || die "cannot ask the model"

heading 'Starting the node of the initiator'
NODE_FLAGS=(--api-addr 127.0.0.1:0 --model "$MODEL" --split)
start_node "$ASKER" "$LISTEN"
wait_for_responder llm_responder.sh "$HELPER"
note "Connected to $OTHER."

run_connection_tests "$HELPER"
run_answer_tests
check 'it is the answer of this device alone' '' "both are kept in $SESSION" \
  cmp -s "$SESSION/short.txt" "$SESSION/short-alone.txt"
receipt_holds() {
  "$PANGEA_BIN" receipts verify "$RECEIPT" --data-dir "$SESSION/home" --model "$MODEL" >>"$SESSION/commands.log" 2>&1
}
check 'its receipt holds' "$RECEIPT" "pangea receipts verify $RECEIPT says why" receipt_holds

wait_for 'the questions of the responder' "$TESTS_TIMEOUT_S" sign_came \
  || die "the responder did not finish its questions within $TESTS_TIMEOUT_S s (--tests-timeout)"

heading 'The other node is killed in the middle of an answer'
begun() { [ -s "$SESSION/long.txt" ]; }
chat "$SESSION/long.txt" "$LONG" "$LONG_TOKENS" &
COMMAND_PID=$!
answering=$COMMAND_PID
wait_for 'the answer to begin' "$TIMEOUT_S" begun || die 'no answer began'
send_sign || die "the responder computed no product: $DETAIL"
code=0
wait "$answering" || code=$?
COMMAND_PID=''
check 'the answer goes on' '' "'pangea chat' ended with exit code $code: see $SESSION/commands.log" [ "$code" -eq 0 ]
check 'it is the answer of this device alone' "$(wc -w <"$SESSION/long.txt" | tr -d ' ') words" \
  "both are kept in $SESSION" cmp -s "$SESSION/long.txt" "$SESSION/long-alone.txt"
moved() { logged 'session failing over'; }
check 'it failed over in the middle' '' 'it was complete before the other node was killed' moved
died() { logged "Peer $OTHER is gone"; }
check 'the loss was noticed' '' 'nothing in the log' wait_for 'the loss' "$TIMEOUT_S" died

heading 'The other node comes back'
check 'it is connected again' "$OTHER" "not within $TIMEOUT_S s" wait_for 'the responder' "$TIMEOUT_S" connected_as "$HELPER"
check 'it computes answers again' '' "no receipt names it within $TIMEOUT_S s" \
  wait_for 'an answer of both nodes' "$TIMEOUT_S" asked_with_others "$SESSION/again.txt" "$SHORT" 24

# Leaving signals the responder that it is no longer needed.
stop_node
CLOSING='Answers were computed by both devices together'
report
