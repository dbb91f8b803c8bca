# shellcheck shell=bash disable=SC2034
# One side of the compute test across two devices: session folder, node, tests and result table.
# Sourced by 03_initiator.sh and 03_responder.sh, and by llm_test_session.sh. The binary does all computing, checking and connecting.
#
# The two sides take turns, so that neither disturbs the other's measurements and neither leaves too early:
#
#   responder                               initiator
#   connects, runs its tests                serves
#   leaves, returns as SERVING              sees it return, runs its tests
#   serves                                  leaves
#   sees it go: the fallback test           the fallback test, on a node of its own without peers
#
# Each side waits only for lines in its own node's log and entries of `pangea peers`; every wait has a timeout.

# shellcheck source=scripts/toolchain.sh
. "$(dirname "${BASH_SOURCE[0]}")/toolchain.sh"

TESTING='compute-test-testing'
SERVING='compute-test-serving'
START_TIMEOUT_S=60 # time from starting the node to its `Listening on` line; the node measures its speed first
STOP_TIMEOUT_S=15  # time from SIGTERM to the node's end; the node drains first
POLL_S=0.1         # interval between two checks of the log

ROLE=''
TITLE='Compute test'
CLOSING='' # last line of the table, if it is not the number of remote tasks
NODE_FLAGS=(--no-api)
MODEL="${PANGEA_MODEL:-}"
PEER_ADDRESS="${PANGEA_PEER:-}"
SIZE="${PANGEA_SIZE:-1024}"
TIMEOUT_S="${PANGEA_TIMEOUT:-60}"
TESTS_TIMEOUT_S="${PANGEA_TESTS_TIMEOUT:-900}"
PORT="${PANGEA_PORT:-}"
LISTEN="${PANGEA_LISTEN:-}"
RPC_ADDRESS="${PANGEA_RPC_ADDR:-127.0.0.1:0}"
POOL_KEY="${PANGEA_POOL_KEY:-}"
KEEP="${PANGEA_KEEP:-}"

SESSION=''
NODE_PID=''
NODE_LOG=''
NODE_STARTS=0
COMMAND_PID=''
RPC=''
OTHER=''
REMOTE_TASKS=0
FAILED=0
TABLE=''

usage_error() {
  fail "$1"
  printf "Try '%s --help'.\n" "$0" >&2
  exit 2
}

session_options() {
  cat <<'TEXT'
Options (the environment variable does the same):
  --size N            rows and columns of the matrices (1024; PANGEA_SIZE)
TEXT
  shared_options
}

# The options that every session script has, as its help shows them.
shared_options() {
  cat <<'TEXT'
  --timeout S         seconds to wait for the other device (60; PANGEA_TIMEOUT)
  --tests-timeout S   seconds to let the other device run its tests (900; PANGEA_TESTS_TIMEOUT)
  --port P            TCP and UDP port to listen on, 0 for a free one (initiator 7777, responder 0; PANGEA_PORT)
  --listen MULTIADDR  one address to listen on instead (PANGEA_LISTEN)
  --rpc-addr ADDR     address on which the node accepts commands (127.0.0.1:0, a free port; PANGEA_RPC_ADDR)
  --pool-key FILE     key of the pool, the same on both devices: 64 hex digits (PANGEA_POOL_KEY)
  --keep              keep the session folder with its logs (PANGEA_KEEP=1)
  --help              this text

PANGEA_BIN names a `pangea` to use instead of building one. The session folder is ~/.pangea/compute_test/
(PANGEA_HOME replaces ~/.pangea); it is removed at the end, except after a failure.
Exit codes: 0 all tests passed, 1 a test failed or the other device did not connect, 2 bad usage.
TEXT
}

whole_number() { # flag value
  case "$2" in '' | *[!0-9]* | ??????????*) usage_error "$1 takes a whole number, not '$2'" ;; esac
}

# Parses the options that both scripts have; other arguments are left in OPERANDS.
OPERANDS=()
parse_options() {
  while [ $# -gt 0 ]; do
    case "$1" in
      --help | -h) usage; exit 0 ;;
      --keep) KEEP=1; shift; continue ;;
      --*=*)
        local flag=${1%%=*} value=${1#*=}
        shift
        set -- "$flag" "$value" "$@"
        ;;
    esac
    case "$1" in
      --size | --timeout | --tests-timeout | --port | --listen | --rpc-addr | --pool-key | --peer | --model)
        [ $# -ge 2 ] || usage_error "$1 needs a value"
        case "$1" in
          --size) SIZE=$2 ;;
          --timeout) TIMEOUT_S=$2 ;;
          --tests-timeout) TESTS_TIMEOUT_S=$2 ;;
          --port) PORT=$2 ;;
          --listen) LISTEN=$2 ;;
          --rpc-addr) RPC_ADDRESS=$2 ;;
          --pool-key) POOL_KEY=$2 ;;
          --model)
            [ "$ROLE" = llm-initiator ] || usage_error 'unknown option --model: it is for llm_initiator.sh'
            MODEL=$2
            ;;
          --peer)
            [ "${ROLE#llm-}" = responder ] || usage_error "unknown option --peer: only the responder connects to a peer"
            PEER_ADDRESS=$2
            ;;
        esac
        shift 2
        ;;
      --) shift; while [ $# -gt 0 ]; do OPERANDS+=("$1"); shift; done ;;
      -*) usage_error "unknown option $1" ;;
      *) OPERANDS+=("$1"); shift ;;
    esac
  done
  whole_number --size "$SIZE"
  [ "$SIZE" -ge 1 ] || usage_error '--size is at least 1'
  whole_number --timeout "$TIMEOUT_S"
  whole_number --tests-timeout "$TESTS_TIMEOUT_S"
  whole_number --port "$PORT"
  [ "$PORT" -le 65535 ] || usage_error "--port is at most 65535, not $PORT"
  [ -z "$POOL_KEY" ] || [ -r "$POOL_KEY" ] || usage_error "the pool key file '$POOL_KEY' cannot be read"
}

# Checks the form of an address; the node finds out whether it is reachable.
valid_address() {
  printf '%s\n' "$1" | grep -Eq '^/(ip4/[0-9]{1,3}(\.[0-9]{1,3}){3}|ip6/[0-9A-Fa-f:.]+|dns[46]?/[A-Za-z0-9._-]+)/(tcp/[0-9]{1,5}|udp/[0-9]{1,5}/quic-v1)/p2p/[1-9A-HJ-NP-Za-km-z]{20,}$'
}

# Sets PEER_ADDRESS from the operands, or asks for it on a terminal.
take_peer_address() {
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
}

# ---- the session folder ------------------------------------------------------------------------------------------

# Creates the session folder. The folder and node of a dead session are removed; a live session is an error.
open_session() {
  local home="${PANGEA_HOME:-$HOME/.pangea}" old
  SESSIONS="$home/compute_test"
  local folder="$SESSIONS/$ROLE"
  mkdir -p "$SESSIONS"
  if ! mkdir "$folder" 2>/dev/null; then
    old=$(cat "$folder/script.pid" 2>/dev/null || true)
    if [ -n "$old" ] && [ "$old" != $$ ] && kill -0 "$old" 2>/dev/null; then
      die "another $ROLE of the compute test is running (process $old); if that process is something else, remove $folder"
    fi
    old=$(cat "$folder/node.pid" 2>/dev/null || true)
    # Another program may have this process id by now: only a node of this folder is ended.
    case "$([ -z "$old" ] || ps -p "$old" -o args= 2>/dev/null)" in
      *"--data-dir $folder/"*) end_process "$old" ;;
    esac
    rm -rf "$folder"
    mkdir "$folder"
  fi
  SESSION=$folder
  echo $$ >"$SESSION/script.pid"
}

# Ends one process by its id: SIGTERM, a wait, then SIGKILL.
end_process() {
  local pid=$1 tries=$((STOP_TIMEOUT_S * 10))
  kill -TERM "$pid" 2>/dev/null || return 0
  while kill -0 "$pid" 2>/dev/null; do
    if [ "$tries" -le 0 ]; then
      warn "process $pid did not end within $STOP_TIMEOUT_S s; killing it"
      kill -KILL "$pid" 2>/dev/null || true
      break
    fi
    tries=$((tries - 1))
    sleep "$POLL_S"
  done
  wait "$pid" 2>/dev/null || true
}

close_session() {
  local code=$?
  # A second Ctrl-C must not interrupt the clean-up.
  trap '' INT TERM HUP
  [ -z "$COMMAND_PID" ] || end_process "$COMMAND_PID"
  [ -z "$NODE_PID" ] || end_process "$NODE_PID"
  [ -n "$SESSION" ] || exit "$code"
  rm -f "$SESSION/script.pid" "$SESSION/node.pid"
  if [ -n "$KEEP" ] || [ "$code" -eq 1 ]; then
    note "Logs are in $SESSION"
  else
    rm -rf "$SESSION"
    # Each folder is removed only if it is empty.
    rmdir "$SESSIONS" "${SESSIONS%/*}" 2>/dev/null || true
  fi
  exit "$code"
}

trap_signals() {
  trap close_session EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM
  trap 'exit 129' HUP
}

# ---- the node ----------------------------------------------------------------------------------------------------

# Runs a command in the background and waits, so that a signal runs the trap, which ends the command.
run_command() {
  "$@" &
  COMMAND_PID=$!
  local code=0
  wait "$COMMAND_PID" || code=$?
  COMMAND_PID=''
  return "$code"
}

# Runs a command against this session's node. Standard error goes to commands.log.
pangea() {
  printf '$ pangea %s\n' "$*" >>"$SESSION/commands.log"
  run_command "$PANGEA_BIN" "$@" --rpc "$RPC" 2>>"$SESSION/commands.log"
}

# The value of a key that occurs once in a JSON document on standard input; empty if the key is missing.
json_value() {
  tr -d '\n' | tr ',{}[]' '\n' | sed -n "s/^ *\"$1\" *: *\"\{0,1\}\([^\"]*[^\" ]\).*/\1/p" | sed -n 1p
}

start_node() { # name listen-address-or-nothing [peer address]
  NODE_STARTS=$((NODE_STARTS + 1))
  NODE_LOG="$SESSION/node-$NODE_STARTS.log"
  local home="$SESSION/home" arguments
  mkdir -p "$home"
  rm -f "$home/node.json"
  arguments=(node --name "$1" --no-mdns "${NODE_FLAGS[@]}" --rpc-addr "$RPC_ADDRESS")
  if [ -n "$2" ]; then
    arguments+=(--listen "$2")
  else
    arguments+=(--listen "/ip4/0.0.0.0/tcp/$PORT" --listen "/ip4/0.0.0.0/udp/$PORT/quic-v1")
  fi
  [ -z "${3:-}" ] || arguments+=(--peer "$3")
  # Without a key the pool is open for the time of the test.
  if [ -n "$POOL_KEY" ]; then arguments+=(--pool-key "$POOL_KEY"); else arguments+=(--open); fi
  # The folder is the last argument: open_session looks for it in a process's command line.
  NO_COLOR=1 "$PANGEA_BIN" "${arguments[@]}" --data-dir "$home" </dev/null >"$NODE_LOG" 2>&1 &
  NODE_PID=$!
  echo "$NODE_PID" >"$SESSION/node.pid"
  wait_for 'the node to start' "$START_TIMEOUT_S" logged 'Listening on ' || node_failed
  RPC=$(json_value rpc <"$home/node.json")
  [ -n "$RPC" ] || die "$home/node.json has no address for commands"
}

stop_node() {
  local pid=$NODE_PID
  NODE_PID=''
  end_process "$pid"
  rm -f "$SESSION/node.pid"
}

# Kills the node with SIGKILL, which other nodes see like a power cut.
kill_node() {
  local pid=$NODE_PID
  NODE_PID=''
  kill -KILL "$pid" 2>/dev/null || true
  wait "$pid" 2>/dev/null || true
  rm -f "$SESSION/node.pid"
}

# Prints the node's last log lines, and what to do about a port in use.
node_failed() {
  local last
  last=$(grep -v '^ *$' "$NODE_LOG" | tail -n 5)
  fail 'the node did not start. It said:'
  printf '%s\n' "$last" | sed 's/^/    /' >&2
  case "$last" in
    *[Ii]n\ use*)
      if [ -n "$LISTEN" ]; then
        note "Choose another address with --listen, or stop the program that uses $LISTEN or $RPC_ADDRESS." >&2
      else
        note "Port $PORT (peers) or $RPC_ADDRESS (commands) is in use: choose another with --port or --rpc-addr (0 picks a free one)," >&2
        note "or stop the program that uses it." >&2
      fi
      ;;
  esac
  exit 1
}

# ---- waiting -----------------------------------------------------------------------------------------------------

now_s() { date +%s; }

logged() { grep -q -- "$1" "$NODE_LOG" 2>/dev/null; }

# Waits for a condition: returns 0 once it holds, 1 on a timeout. Ends the session if the node ends meanwhile.
wait_for() { # what seconds condition...
  local what=$1 until=$(($(now_s) + $2))
  shift 2
  while ! "$@"; do
    if [ -n "$NODE_PID" ] && ! kill -0 "$NODE_PID" 2>/dev/null; then
      "$@" && return 0
      NODE_PID=''
      logged 'Listening on ' || node_failed
      die "the node ended while waiting for $what; its log is $NODE_LOG"
    fi
    [ "$(now_s)" -lt "$until" ] || return 1
    sleep "$POLL_S"
  done
}

# Peer id of the connected peer with a name; empty if there is none.
peer_named() {
  pangea peers --json 2>/dev/null | tr -d '\n' | tr '{' '\n' | grep "\"name\" *: *\"$1\"" \
    | grep '"state" *: *"connected"' | sed -n 's/.*"peer" *: *"\([^"]*\)".*/\1/p' | sed -n 1p
}

# Whether a peer with a name is connected; the node is asked only after its log shows a connection.
connected_as() {
  logged 'Connected to peer ' || return 1
  OTHER=$(peer_named "$1")
  [ -n "$OTHER" ]
}

gone() { logged "Peer $OTHER is gone"; }

# The node learns its addresses one interface after another: loopback is shown only if there is no better one.
reachable_from_outside() {
  ADDRESS=$(json_value reachable <"$SESSION/home/node.json")
  case "$ADDRESS" in '' | /ip4/127.* | /ip6/::1/*) return 1 ;; esac
}

# Shows this node's address for the other device, and waits until that device has connected.
wait_for_responder() { # script-of-the-responder name-of-its-node
  wait_for 'an address that another device reaches' 1 reachable_from_outside || true
  [ -n "$ADDRESS" ] || die "$SESSION/home/node.json has no address for other devices"
  echo "$ADDRESS" >"$SESSION/address"
  cat <<TEXT
Run this on the other device:

    ./scripts/$1 $BOLD$ADDRESS$PLAIN

Waiting for it to connect, $TIMEOUT_S s at most.
TEXT
  wait_for 'the responder' "$TIMEOUT_S" connected_as "$2" \
    || die "no responder connected within $TIMEOUT_S s. Is $ADDRESS reachable from the other device (same network, port open in the firewall)? Do both have the same pool key, or none?"
}

# Waits until this node is connected to the initiator's address.
wait_for_initiator() { # name-of-its-node
  echo "$PEER_ADDRESS" >"$SESSION/address"
  note "Connecting to $PEER_ADDRESS, $TIMEOUT_S s at most."
  wait_for 'the initiator' "$TIMEOUT_S" connected_as "$1" \
    || die "no connection to $PEER_ADDRESS within $TIMEOUT_S s. Is the initiator still waiting, is that its address on this network, is its port open in the firewall? Do both have the same pool key, or none?"
  note "Connected to $OTHER."
}

# ---- the tests ---------------------------------------------------------------------------------------------------

record() { # passed|FAILED name detail
  local colour=$GREEN
  [ "$1" = passed ] || { colour=$RED; FAILED=$((FAILED + 1)); }
  printf '  %s%-6s%s  %-38s %s\n' "$colour" "$1" "$PLAIN" "$2" "$3"
  TABLE="$TABLE$(printf '  %-38s %s%-6s%s  %s' "$2" "$colour" "$1" "$PLAIN" "$3")
"
}

# Computes one product; sets REPORT, MODE, REMOTE, VERDICT and DETAIL.
product() { # options of `pangea matmul`...
  REPORT="$SESSION/report.json" MODE='' REMOTE=0 VERDICT='' DETAIL=''
  if ! pangea matmul "$@" --json >"$REPORT"; then
    DETAIL=$(tail -n 1 "$SESSION/commands.log")
    return 1
  fi
  MODE=$(json_value mode <"$REPORT")
  REMOTE=$(json_value remote <"$REPORT")
  REMOTE=${REMOTE:-0}
  VERDICT=$(json_value verdict <"$REPORT")
  REMOTE_TASKS=$((REMOTE_TASKS + REMOTE))
  DETAIL=$(printf '%s, %s tasks remote, %.4g s, %.4g GFLOP/s, %s' "$MODE" "$REMOTE" \
    "$(json_value seconds <"$REPORT")" "$(json_value gflops <"$REPORT")" "$VERDICT")
}

test_connected() {
  if [ -n "$(peer_named "$1")" ]; then
    record passed 'the other node is a peer' "$OTHER"
  else
    record FAILED 'the other node is a peer' "'pangea peers' does not show it as connected"
  fi
}

test_product() { # name mode-or-any options...
  local name=$1 mode=$2
  shift 2
  if ! product --size "$SIZE" --generate --verify "$@"; then
    record FAILED "$name" "$DETAIL"
  elif [ "$mode" = local ] && [ "$MODE" != local ]; then
    record FAILED "$name" "expected every task here: $DETAIL"
  elif [ "$mode" = remote ] && [ "$REMOTE" -eq 0 ]; then
    record FAILED "$name" "expected tasks on the other node: $DETAIL"
  else
    record passed "$name" "$DETAIL"
  fi
}

# An integer product has one right answer: both nodes' results must be equal bit for bit.
test_exact() {
  local name='integer product, equal bit for bit' options=(--size "$SIZE" --generate --seed 7 --dtype i8)
  if ! product "${options[@]}" --place local -o "$SESSION/local.npy" \
    || ! product "${options[@]}" --place remote -o "$SESSION/remote.npy"; then
    record FAILED "$name" "$DETAIL"
  elif [ "$REMOTE" -eq 0 ]; then
    record FAILED "$name" "expected tasks on the other node: $DETAIL"
  elif ! cmp -s "$SESSION/local.npy" "$SESSION/remote.npy"; then
    record FAILED "$name" "local and remote products differ; both are kept in $SESSION"
    return
  else
    record passed "$name" "$DETAIL"
  fi
  rm -f "$SESSION/local.npy" "$SESSION/remote.npy"
}

# The tests that each side runs while the other serves.
run_tests() { # name of the peer
  heading "Tests of this $ROLE, $SIZE x $SIZE"
  test_connected "$1"
  test_product 'product on this node' local --place local
  test_product 'product on the other node' remote --place remote
  test_product 'product wherever it is done sooner' any --place auto
  test_exact
}

# The tests that each side runs without another node.
run_fallback_test() {
  heading 'Test with the other node gone'
  test_product 'remote product with nobody there' local --place remote
}

report() {
  heading "$TITLE, $ROLE"
  printf '%s' "$TABLE"
  printf '\n%s\n' "${CLOSING:-$REMOTE_TASKS tasks ran REMOTELY}"
  if [ "$FAILED" -gt 0 ]; then
    printf '%s%s of the tests FAILED%s\n' "$RED" "$FAILED" "$PLAIN"
    exit 1
  fi
  printf '%sAll tests passed%s\n' "$GREEN" "$PLAIN"
}

begin_session() {
  trap_signals
  # shellcheck disable=SC2119 # what is built besides is for tests
  use_pangea
  open_session
}
