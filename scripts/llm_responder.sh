#!/usr/bin/env bash
# menu: 19 Distributed Language Model Test > 4b Responder: takes the address that the initiator shows
#
# Second device of the language model test: computes layers, asks through its own node, is killed in the middle of an answer.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/llm_test_session.sh"
ROLE=llm-responder
PORT=${PORT:-0}

usage() {
  cat <<'TEXT'
Usage: scripts/llm_responder.sh [ADDRESS] [options]

Second device of the language model test; it needs no model. ADDRESS is the one that scripts/llm_initiator.sh
shows on the other device; it may also be given with --peer or PANGEA_PEER, and is asked for on a terminal.

Options (the environment variable does the same):
TEXT
  shared_options
}

parse_options "$@"
take_peer_address

begin_session
heading 'Starting the node of the responder'
NODE_FLAGS=(--api-addr 127.0.0.1:0)
start_node "$HELPER" "$LISTEN" "$PEER_ADDRESS"
wait_for_initiator "$ASKER"

run_connection_tests "$ASKER"
run_answer_tests
send_sign || die "the initiator computed no product: $DETAIL"

wait_for 'the long answer of the initiator' "$TESTS_TIMEOUT_S" sign_came \
  || die "the initiator did not ask within $TESTS_TIMEOUT_S s (--tests-timeout)"
heading 'Killing the node of the responder, and starting it again'
kill_node
start_node "$HELPER" "$LISTEN" "$PEER_ADDRESS"
check 'the node connects again' "$OTHER" "not within $TIMEOUT_S s" \
  wait_for 'the initiator' "$TIMEOUT_S" connected_as "$ASKER"
wait_for 'the tests of the initiator' "$TESTS_TIMEOUT_S" gone \
  || die "the initiator did not finish its tests within $TESTS_TIMEOUT_S s (--tests-timeout)"
stop_node
CLOSING='Answers were computed by both devices together'
report
