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

# What an address must look like; whether it leads anywhere is for the node to find out.
valid_address() {
  printf '%s\n' "$1" | grep -Eq '^/(ip4/[0-9]{1,3}(\.[0-9]{1,3}){3}|ip6/[0-9A-Fa-f:.]+|dns[46]?/[A-Za-z0-9._-]+)/(tcp/[0-9]{1,5}|udp/[0-9]{1,5}/quic-v1)/p2p/[1-9A-HJ-NP-Za-km-z]{20,}$'
}

parse_options "$@"
[ ${#OPERANDS[@]} -le 1 ] || usage_error "one address is enough: unexpected argument '${OPERANDS[1]}'"
[ ${#OPERANDS[@]} -eq 0 ] || PEER_ADDRESS=${OPERANDS[0]}
if [ -z "$PEER_ADDRESS" ] && [ -t 0 ]; then
  printf "Address that the initiator shows (/ip4/…/tcp/…/p2p/…): "
  IFS= read -r PEER_ADDRESS || true
fi
PEER_ADDRESS=$(printf '%s' "$PEER_ADDRESS" | tr -d '[:space:]')
[ -n "$PEER_ADDRESS" ] || usage_error 'the address of the initiator is missing: give it as an argument, with --peer or in PANGEA_PEER'
valid_address "$PEER_ADDRESS" \
  || usage_error "'$PEER_ADDRESS' is no address of a node. It looks like /ip4/192.168.1.20/tcp/7777/p2p/12D3KooW…; copy the whole line that the initiator shows"

begin_session
echo "$PEER_ADDRESS" >"$SESSION/address"
heading 'Starting the node of the responder'
start_node "$TESTING" "$LISTEN" "$PEER_ADDRESS"
note "Connecting to $PEER_ADDRESS, $TIMEOUT_S s at most."
wait_for 'the initiator' "$TIMEOUT_S" connected_as "$TESTING" \
  || die "no connection to $PEER_ADDRESS within $TIMEOUT_S s. Is the initiator still waiting, is that its address on this network, is its port open in the firewall? Do both have the same pool key, or none?"
note "Connected to $OTHER."
run_tests "$TESTING"

# Leaving and coming back under the other name hands the turn to the initiator.
stop_node
heading 'Serving the initiator'
start_node "$SERVING" "$LISTEN" "$PEER_ADDRESS"
wait_for 'the initiator to connect again' "$TIMEOUT_S" connected_as "$TESTING" \
  || die "the initiator could not be reached again within $TIMEOUT_S s"
note 'The initiator runs its tests; this node computes for it.'
wait_for 'the tests of the initiator' "$TESTS_TIMEOUT_S" gone \
  || die "the initiator did not finish its tests within $TESTS_TIMEOUT_S s (--tests-timeout)"
run_fallback_test
stop_node
report
