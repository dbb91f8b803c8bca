#!/usr/bin/env bash
# menu: 18 Distributed Compute Test > 3b Responder: takes the address that the initiator shows
#
# Second device of the compute test: connects to the initiator's address and runs the same tests.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/compute_test_session.sh"
ROLE=responder
PORT=${PORT:-0}

usage() {
  cat <<'TEXT'
Usage: scripts/03_responder.sh [ADDRESS] [options]

Second device of the compute test. ADDRESS is what scripts/03_initiator.sh shows on the other
device; it may also be given with --peer or PANGEA_PEER, and is asked for on a terminal.

TEXT
  session_options
}

parse_options "$@"
take_peer_address

begin_session
heading 'Starting the node of the responder'
start_node "$TESTING" "$LISTEN" "$PEER_ADDRESS"
wait_for_initiator "$TESTING"
run_tests "$TESTING"

# Leaving and returning under the other name hands the turn to the initiator.
stop_node
heading 'Serving the initiator'
start_node "$SERVING" "$LISTEN" "$PEER_ADDRESS"
wait_for 'the initiator to connect again' "$TIMEOUT_S" connected_as "$TESTING" \
  || die "cannot reach the initiator again within $TIMEOUT_S s"
note 'The initiator runs its tests; this node computes for it.'
wait_for 'the tests of the initiator' "$TESTS_TIMEOUT_S" gone \
  || die "the initiator did not finish its tests within $TESTS_TIMEOUT_S s (--tests-timeout)"
run_fallback_test
stop_node
report
