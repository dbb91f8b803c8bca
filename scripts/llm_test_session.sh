# shellcheck shell=bash disable=SC2034,SC2153
# One side of the language model test across two devices: questions, receipts, and the turns of the two sides.
# Sourced by llm_initiator.sh and llm_responder.sh. The binary does all computing, checking and connecting.
#
#   responder                               initiator
#   connects, asks through its own node     asks through its own node
#   sends a product as its signal           waits for that
#   waits for a product                     has a long answer begun, then sends a product
#   kills its node, starts it again         the answer goes on; the node is used again
#   sees the initiator go                   leaves

# shellcheck source=scripts/compute_test_session.sh
. "$(dirname "${BASH_SOURCE[0]}")/compute_test_session.sh"

TITLE='Language model test'
ASKER='llm-test-initiator'
HELPER='llm-test-responder'
SHORT='What is the capital of France?'
SHORT_ANSWER='Paris'
LONG='Write a long story about a lighthouse keeper and the sea.'
LONG_TOKENS=600     # some seconds of text: enough time to kill the other node in the middle
RECEIPT_TIMEOUT_S=5 # receipts are written shortly after the answer

RECEIPT=''

# Asks with greedy sampling, so that there is one right answer. Asks this session's node, unless options name another place.
chat() { # file question max-tokens options...
  local file=$1 question=$2 tokens=$3
  shift 3
  [ $# -gt 0 ] || set -- --api "$(json_value api <"$SESSION/home/node.json")"
  printf '$ pangea chat %s\n' "$*" >>"$SESSION/commands.log"
  "$PANGEA_BIN" chat "$@" --temperature 0 --max-tokens "$tokens" "$question" >"$file" 2>>"$SESSION/commands.log"
}

newest_receipt() {
  "$PANGEA_BIN" receipts list -n 1 --json --data-dir "$SESSION/home" 2>>"$SESSION/commands.log" | json_value id
}

another_receipt() {
  local newest
  newest=$(newest_receipt)
  [ -n "$newest" ] && [ "$newest" != "$RECEIPT" ] && RECEIPT=$newest
}

# Asks, and gets the answer's receipt; only answers that several nodes computed have one.
asked_with_others() { # file question max-tokens
  chat "$@" && wait_for 'a receipt' "$RECEIPT_TIMEOUT_S" another_receipt && receipt_names "$OTHER"
}

receipt_names() { # peer
  "$PANGEA_BIN" receipts show "$RECEIPT" --json --data-dir "$SESSION/home" >"$SESSION/receipt.json" \
    2>>"$SESSION/commands.log" && grep -q -- "$1" "$SESSION/receipt.json"
}

# Sends a product that the other node computes: a signal to its script.
send_sign() {
  product --size 64 --generate --place remote && [ "$REMOTE" -gt 0 ]
}

sign_came() {
  [ "$(pangea status --json | json_value tasks_served)" -gt 0 ]
}

one_master() {
  [ "$(pangea topology --json | grep -c '"master": true')" -eq 1 ]
}

check() { # name detail-if-passed detail-if-failed condition...
  local name=$1 passed=$2 failed=$3
  shift 3
  if "$@"; then record passed "$name" "$passed"; else record FAILED "$name" "$failed"; fi
}

# Test 1 of both sides: connected, one master.
run_connection_tests() { # name of the peer
  heading 'Connection'
  test_connected "$1"
  check 'there is one master' '' "'pangea topology' shows none, or two" wait_for 'a master' "$TIMEOUT_S" one_master
}

# Test 2 of both sides: both nodes compute an answer, and it makes sense.
run_answer_tests() {
  heading 'Answers'
  check 'both nodes compute an answer' "$SHORT" "no answer with a receipt that names $OTHER within $TIMEOUT_S s" \
    wait_for 'an answer of both nodes' "$TIMEOUT_S" asked_with_others "$SESSION/short.txt" "$SHORT" 24
  check 'the answer makes sense' "$(head -n 1 "$SESSION/short.txt")" "$(head -n 1 "$SESSION/short.txt")" \
    grep -q "$SHORT_ANSWER" "$SESSION/short.txt"
}
