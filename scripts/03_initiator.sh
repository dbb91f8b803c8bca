#!/usr/bin/env bash
# menu: 18 Distributed Compute Test > 3a Initiator: start here, it shows the address for the other device
#
# First device of the compute test: starts a node, shows its address, waits for the responder, runs the tests.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/compute_test_session.sh"
ROLE=initiator
PORT=${PORT:-7777}

usage() {
  cat <<'TEXT'
Usage: scripts/03_initiator.sh [options]

First device of the compute test. Shows an address, waits for the other device to run
scripts/03_responder.sh with it, then both run the same tests on each other.

TEXT
  session_options
}

parse_options "$@"
[ ${#OPERANDS[@]} -eq 0 ] || usage_error "unexpected argument '${OPERANDS[0]}'"

begin_session
heading 'Starting the node of the initiator'
start_node "$TESTING" "$LISTEN"
wait_for_responder 03_responder.sh "$TESTING"
note "Connected to $OTHER. It runs its tests first; this node computes for it."

wait_for 'the tests of the responder' "$TESTS_TIMEOUT_S" gone \
  || die "the responder did not finish its tests within $TESTS_TIMEOUT_S s (--tests-timeout)"
wait_for 'the responder to come back' "$TIMEOUT_S" connected_as "$SERVING" \
  || die "the responder left and did not return within $TIMEOUT_S s: see its output"
run_tests "$SERVING"

# Leaving signals the responder that it is no longer needed.
stop_node
start_node "$TESTING" /ip4/127.0.0.1/tcp/0
run_fallback_test
stop_node
report
