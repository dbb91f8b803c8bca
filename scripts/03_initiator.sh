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

# The node learns its addresses one interface after the other: loopback is shown only when nothing better came.
leads_outside() {
  ADDRESS=$(json_value reachable <"$SESSION/home/node.json")
  case "$ADDRESS" in '' | /ip4/127.* | /ip6/::1/*) return 1 ;; esac
}
wait_for 'an address that another device reaches' 1 leads_outside || true
[ -n "$ADDRESS" ] || die "the node did not say where it can be reached ($SESSION/home/node.json)"
echo "$ADDRESS" >"$SESSION/address"

cat <<TEXT
Run this on the other device:

    ./scripts/03_responder.sh $BOLD$ADDRESS$PLAIN

Waiting for it to connect, $TIMEOUT_S s at most.
TEXT
wait_for 'the responder' "$TIMEOUT_S" connected_as "$TESTING" \
  || die "no responder connected within $TIMEOUT_S s. Is $ADDRESS reachable from the other device (same network, port open in the firewall)? Do both have the same pool key, or none?"
note "Connected to $OTHER. It runs its tests first; this node computes for it."

wait_for 'the tests of the responder' "$TESTS_TIMEOUT_S" gone \
  || die "the responder did not finish its tests within $TESTS_TIMEOUT_S s (--tests-timeout)"
wait_for 'the responder to come back' "$TIMEOUT_S" connected_as "$SERVING" \
  || die "the responder left and did not come back within $TIMEOUT_S s: look at what it says"
run_tests "$SERVING"

# Leaving tells the responder that it is needed no more.
stop_node
start_node "$TESTING" /ip4/127.0.0.1/tcp/0
run_fallback_test
stop_node
report
