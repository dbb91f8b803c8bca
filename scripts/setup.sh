#!/usr/bin/env bash
# All tasks of a checkout: a menu for people, subcommands for people and CI.
# The menu is read from the `# menu:` lines of the scripts in this folder, this one included:
#   # menu: NUMBER TITLE [> SUB SUBTITLE] [| ARGUMENTS]
#
# menu: 1 Demo: multiply across three nodes on this machine, kill one, finish anyway, ask a model | demo
# menu: 2 Build the binary | build
# menu: 3 Run all tests | test
# menu: 4 Benchmark matrix products, and a language model if it is on this machine | bench
# menu: 5 Fuzz the parsers of bytes from outside, and machines fed with any events, ten seconds each | fuzz 10
# menu: 6 Test the kernels for 64-bit ARM under an emulator | aarch64
# menu: 7 Soak: two nodes for half an hour keep connections, ports and memory flat | soak
# menu: 8 Simulate: play worlds of nodes that fail and lie, until Ctrl-C or the first broken promise | sim
# menu: 9 Chaos: a hundred faults under load, then a node lost at every token of an answer | chaos 100
# menu: 10 Mutants: break each decision about trust and membership once; a test must fail. Hours | mutants
# menu: 11 Crowd: twenty nodes on this machine, how soon they know of each other, what an idle one costs | crowd
# menu: 13 Build the book as HTML | book
set -euo pipefail
# shellcheck source=scripts/toolchain.sh
. "$(dirname "${BASH_SOURCE[0]}")/toolchain.sh"

usage() {
  cat <<'TEXT'
Usage: scripts/setup.sh [SUBCOMMAND]

  demo            build the binary, download a small language model, then multiply two matrices across three
                  nodes on this machine and ask the model a question; on a terminal, the nodes stay for a chat in the browser
  test            format, lints, documentation, licences, every test: what CI runs
  build           build the binary, target/release/pangea
  bench           measure matrix products; options are passed to 'pangea bench matmul'. Without options, a language
                  model is measured as well, if it is on this machine
  fuzz [SECONDS]  fuzz each parser of bytes from outside, and machines fed with any events (60)
  soak [MINUTES]  two nodes on this machine: connections, ports and memory must stay flat (30)
  crowd [NODES]   so many nodes on this machine (20): how soon all know of a newcomer and of a loss, what an idle one costs
  sim [SEED]      play one seed of the simulated world and print its log; without SEED, play seeds that the tests do not,
                  ten thousand at a time, until Ctrl-C or the first broken promise
  chaos [FAULTS]  as root on Linux: random faults of four nodes under a mixed load of products and answers (1000); then
                  a node is killed, and one stopped, at every token of an answer. PANGEA_CHAOS_SEED draws other faults
  mutants [ROOM]  break each decision of one room of node/control, or of all that decide about trust, membership and
                  quotas, once: a unit test must fail. What survives belongs into node/control/MUTANTS.md
  aarch64         on x86-64 Linux: the kernels' tests and the pinned digests, built for 64-bit ARM, under qemu
  book            build the book as HTML, target/book/index.html
  help            this text

Without a subcommand: a menu. Missing tools are installed; on a terminal, after asking.
TEXT
}

# Question of the demo.
DEMO_MODEL=smollm2

# ---- subcommands -------------------------------------------------------------------------------------------------

build() {
  need_pangea
  note "Built ${PANGEA_BIN#"$REPOSITORY/"}"
}

demo() {
  use_pangea
  "$PANGEA_BIN" models pull "$DEMO_MODEL" >/dev/null \
    || warn "SKIPPED: the model $DEMO_MODEL could not be downloaded; the demo runs without it, and 'pangea models pull $DEMO_MODEL' tries again"
  # At a terminal the nodes stay, and the demo says where a browser finds them.
  if [ -z "${CI:-}" ] && [ -t 0 ] && [ -t 1 ]; then
    case " $* " in *' --json '* | *' --stay '*) ;; *) set -- --stay "$@" ;; esac
  fi
  exec "$PANGEA_BIN" demo "$@"
}

bench() {
  use_pangea
  "$PANGEA_BIN" bench matmul "$@"
  [ $# -eq 0 ] || return 0
  if "$PANGEA_BIN" models list --json | grep -q "\"name\": \"$DEMO_MODEL\""; then
    printf '\n'
    "$PANGEA_BIN" bench llm --model "$DEMO_MODEL"
  else
    warn "SKIPPED: bench llm: the model $DEMO_MODEL is not on this machine; 'pangea models pull $DEMO_MODEL' downloads it"
  fi
}

fuzz() {
  local seconds=${1:-60} target
  case "$seconds" in '' | *[!0-9]*) fail "fuzz takes a number of seconds, not '$seconds'"; exit 2 ;; esac
  need_build_tools
  has c++ || has g++ || has clang++ || install_packages 'A C++ compiler (for libFuzzer)' 'g++' ''
  cd "$REPOSITORY"
  local build="$TARGET/fuzz"
  # The flags that `cargo fuzz build --sanitizer none` passes: coverage for libFuzzer, all of them stable.
  local coverage='--cfg fuzzing -Cpasses=sancov-module -Ccodegen-units=1 -Cllvm-args=-sanitizer-coverage-level=4
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table
    -Cllvm-args=-sanitizer-coverage-trace-compares'
  # A separate target keeps build scripts and macros free of the instrumentation.
  RUSTFLAGS=$(printf '%s' "$coverage" | tr -s ' \n' ' ') cargo build --release --locked --bins --target "$(rustc -vV | sed -n 's/^host: //p')" \
    --manifest-path tests/fuzz/Cargo.toml --target-dir "$build"
  sed -n 's/^name = "\(.*\)" # target$/\1/p' tests/fuzz/Cargo.toml | while IFS= read -r target; do
    heading "Fuzz $target, $seconds s"
    mkdir -p "$build/corpus/$target" "$build/artifacts"
    # What it finds goes to the first folder; the kept inputs of the checkout, where there are any, are read only.
    set -- "$build/corpus/$target"
    [ ! -d "tests/fuzz/corpus/$target" ] || set -- "$@" "tests/fuzz/corpus/$target"
    "$(echo "$build"/*/release/"$target")" "$@" -max_total_time="$seconds" -max_len=65536 \
      -artifact_prefix="$build/artifacts/$target-" -print_final_stats=1 </dev/null 2>&1 | tail -n 6
  done
}

# Prints the test's table.
soak() {
  local minutes=${1:-30}
  case "$minutes" in '' | *[!0-9]*) fail "soak takes a number of minutes, not '$minutes'"; exit 2 ;; esac
  need_pangea --workspace --test pool
  cd "$REPOSITORY"
  PANGEA_SOAK_MINUTES=$minutes PANGEA_BIN="$PANGEA_BIN" cargo test --release --locked --workspace --test pool -- \
    --ignored --exact --nocapture soak::connections_ports_and_memory_stay_flat
}

# Prints what was measured.
crowd() {
  local nodes=${1:-20}
  case "$nodes" in '' | *[!0-9]* | 0 | 1 | 2) fail "crowd takes a number of nodes from 3 on, not '$nodes'"; exit 2 ;; esac
  need_pangea --workspace --test pool
  cd "$REPOSITORY"
  PANGEA_CROWD_NODES=$nodes PANGEA_BIN="$PANGEA_BIN" cargo test --release --locked --workspace --test pool -- \
    --ignored --exact --nocapture crowd::everyone_soon_knows_of_a_newcomer_and_of_a_loss_and_idle_nodes_cost_little
}

# Whole control planes in one process, with virtual time: a seed gives the same run on every machine.
sim() {
  local seed=${1:-} first=10000
  case "$seed" in *[!0-9]*) fail "sim takes a seed, which is a number, not '$seed'"; exit 2 ;; esac
  need_build_tools
  cd "$REPOSITORY"
  # The whole workspace is named, so that crates are built once, with the features that the tests build them with.
  set -- cargo test --release --locked --workspace --test world -- --exact --nocapture whatever_happens_every_promise_holds
  if [ -n "$seed" ]; then
    PANGEA_SEED=$seed "$@"
    return
  fi
  while heading "Seeds $first to $((first + 9999))"; do
    PANGEA_FIRST=$first PANGEA_SEEDS=10000 "$@"
    first=$((first + 10000))
  done
}

# Prints the faults, what became of the requests, and the pauses.
chaos() {
  local faults=${1:-1000} code=0
  case "$faults" in '' | *[!0-9]*) fail "chaos takes a number of faults, not '$faults'"; exit 2 ;; esac
  need_namespaces
  need_pangea --workspace --test chaos
  cd "$REPOSITORY"
  export PANGEA_TESTS_NO_SKIP=1 PANGEA_BIN
  PANGEA_CHAOS_FAULTS=$faults cargo test --release --locked --workspace --test chaos -- --nocapture || code=$?
  PANGEA_EVERY_TOKEN=1 cargo test --release --locked --workspace --test pipeline -- --nocapture --test-threads 1 every_token || code=$?
  return "$code"
}

# Each mutant is one build of the crate of decisions, in a copy of the checkout, and one run of its unit tests: some ten seconds.
# The rooms and what is skipped are in .cargo/mutants.toml; the survivors end in target/mutants.out.
mutants() {
  local room=${1:-}
  cd "$REPOSITORY"
  set -- mutants --package pangea-control --jobs 1 --no-shuffle --output "$TARGET"
  if [ -n "$room" ]; then
    grep -q "\"node/control/src/${room}[/.]" .cargo/mutants.toml \
      || { fail "mutants takes a room that .cargo/mutants.toml lists, such as 'trust' or 'session/gate', not '$room'"; exit 2; }
    set -- "$@" --re "^node/control/src/${room}[/.]"
  fi
  need_build_tools
  need_cargo_mutants
  mkdir -p "$TARGET"
  # Builds that nobody debugs, apart from the others: the crates that do not change stay built from one run to the next.
  CARGO_TARGET_DIR="$TARGET/mutants" CARGO_PROFILE_DEV_DEBUG=false CARGO_INCREMENTAL=1 "$CARGO_MUTANTS" "$@"
}

# The other processor must compute the same bits; an emulator computes them like the processor, only slower. It has every
# extension that it knows, so that both families run, without and with i8mm.
aarch64() {
  local triple=aarch64-unknown-linux-gnu
  [ "$(uname -s)" = Linux ] || { fail "aarch64 needs Linux, for qemu's user mode"; exit 2; }
  need_build_tools
  has aarch64-linux-gnu-gcc || install_packages 'A linker for 64-bit ARM' 'gcc-aarch64-linux-gnu libc6-dev-arm64-cross' ''
  has qemu-aarch64 || install_packages 'An emulator of 64-bit ARM' 'qemu-user' ''
  rustup target list --installed | grep -qx "$triple" || rustup target add "$triple"
  cd "$REPOSITORY"
  export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc CC_aarch64_unknown_linux_gnu=aarch64-linux-gnu-gcc
  export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER='qemu-aarch64 -cpu max -L /usr/aarch64-linux-gnu'
  set -- --release --locked --target "$triple" --target-dir "$TARGET/aarch64" -p pangea-compute
  heading 'Kernels'
  cargo test "$@" --lib kernel::
  heading 'Pinned digests'
  cargo test "$@" --test exactness every_architecture
}

# A page may link to a file of the repository that is no page of the book. Copies of those files are put beside the pages, so that the
# folder can be served by itself.
book() {
  [ $# -eq 0 ] || { fail "book takes no arguments"; exit 2; }
  local folder="$TARGET/book" rules="$TARGET/book-links.sed" link file path page
  need_mdbook || build_mdbook
  mkdir -p "$folder"
  "$MDBOOK" build "$REPOSITORY/node/book" --dest-dir "$folder"
  cd "$REPOSITORY/node/book/src"
  { grep -oh 'href="\.\./[^"#]*' "$folder"/*.html || true; } | sed 's/^href="//' | sort -u | while IFS= read -r link; do
    # mdBook makes NAME.html of every NAME.md in a link.
    file=$link
    [ -f "$file" ] || file="${link%.html}.md"
    [ -f "$file" ] || { fail "a page of the book links to $link, which does not exist"; exit 1; }
    path="$(cd "$(dirname "$file")" && pwd -P)/$(basename "$file")"
    path="repository/${path#"$REPOSITORY/"}"
    mkdir -p "$folder/$(dirname "$path")"
    cp "$file" "$folder/$path"
    printf 's|href="%s\\(["#]\\)|href="%s\\1|g\n' "$link" "$path"
  done >"$rules"
  for page in "$folder"/*.html; do
    sed -f "$rules" "$page" >"$page.new"
    mv "$page.new" "$page"
  done
  rm -f "$rules"
  note "The book is ${folder#"$REPOSITORY/"}/index.html"
}

# ---- test --------------------------------------------------------------------------------------------------------

STAGES=''
FAILED_STAGES=0
CLOSING="$TARGET/closing-lines.txt"
SKIPS="$TARGET/skipped-tests.txt"

# Runs one stage and records its result and duration. A failed stage does not stop the others.
stage() { # title command...
  local title=$1 began code=0 verdict=ok colour=$GREEN
  shift
  heading "$title"
  began=$(date +%s)
  "$@" || code=$?
  case $code in
    0) ;;
    77) verdict=SKIPPED colour=$YELLOW ;;
    *) verdict=FAILED colour=$RED FAILED_STAGES=$((FAILED_STAGES + 1)) ;;
  esac
  STAGES="$STAGES$(printf '  %-46s %s%-7s%s %5s s' "$title" "$colour" "$verdict" "$PLAIN" $(($(date +%s) - began)))
"
}

# Prints a runner's output and keeps its closing lines, and the lines of tests that were skipped.
closing_lines() { # pattern command...
  local pattern=$1 log="$TARGET/stage.log" code=0
  shift
  "$@" 2>&1 | tee "$log" || code=$?
  grep -E "$pattern" "$log" >>"$CLOSING" || true
  grep -E '^SKIPPED: ' "$log" >>"$SKIPS" || true
  rm -f "$log"
  return "$code"
}

check_format() { cargo fmt --all --check && cargo fmt --manifest-path tests/fuzz/Cargo.toml --check; }
check_lints() { cargo clippy --release --locked --workspace --all-targets -- -D warnings; }
check_documentation() { RUSTDOCFLAGS='-D warnings' cargo doc --release --locked --workspace --no-deps; }
check_dependencies() {
  "$CARGO_DENY" --locked check licenses bans sources || return 1
  # The fuzz targets have a lock file of their own, which must know the workspace's dependencies.
  cargo metadata --locked --format-version 1 --manifest-path tests/fuzz/Cargo.toml >/dev/null
}

# The advisories are in a repository of their own, which is not always reachable.
check_advisories() {
  local log="$TARGET/advisories.log" code=0
  GIT_TERMINAL_PROMPT=0 GIT_HTTP_LOW_SPEED_LIMIT=1000 GIT_HTTP_LOW_SPEED_TIME=20 \
    "$CARGO_DENY" --locked check advisories >"$log" 2>&1 || code=$?
  if [ $code -ne 0 ] && grep -q 'failed to fetch advisory database' "$log"; then
    rm -f "$log"
    warn 'SKIPPED: the advisory database cannot be reached'
    return 77
  fi
  cat "$log"
  rm -f "$log"
  return $code
}

# The models that tests run: downloaded once, into a folder outside of the checkout. Tests say which models they miss.
fetch_test_models() {
  local model file home="$TARGET/test-models" code=0
  for model in smollm2:SmolLM2-135M-Instruct.Q4_1.gguf gemma3-270m:gemma-3-270m-q4_k_m.gguf; do
    file=${model#*:} model=${model%%:*}
    [ -s "$PANGEA_TEST_MODELS/$file" ] && continue
    if PANGEA_HOME="$home" "$TARGET/release/pangea" models pull "$model" >/dev/null && mkdir -p "$PANGEA_TEST_MODELS"; then
      # The file gets its name only when it is complete, even across two disks.
      mv "$home/models/$file" "$PANGEA_TEST_MODELS/$file.partial" && mv "$PANGEA_TEST_MODELS/$file.partial" "$PANGEA_TEST_MODELS/$file"
    else
      warn "SKIPPED: the model $model cannot be downloaded; tests that need it say so"
      code=77
    fi
  done
  rm -rf "$home"
  [ $code -ne 0 ] || note "The models are in $PANGEA_TEST_MODELS"
  return $code
}

# As root on Linux, with the models at hand, nothing that a test needs can be missing: a test that skips then fails.
forbid_skips() {
  [ "$(uname -s)" = Linux ] && [ "$(id -u)" -eq 0 ] || return 0
  local model
  for model in SmolLM2-135M-Instruct.Q4_1 gemma-3-270m-q4_k_m; do
    [ -s "$PANGEA_TEST_MODELS/$model.gguf" ] || return 0
  done
  export PANGEA_TESTS_NO_SKIP=1
  note 'Every test must run: a test that cannot run here fails'
}

build_everything() { cargo build --release --locked --workspace --all-targets; }
run_rust_tests() { closing_lines '^test result: ' cargo test --release --locked --workspace --no-fail-fast; }
run_python_tests() {
  PANGEA_BIN="$TARGET/release/pangea" PYTHONPATH="$REPOSITORY/client/python/src${PYTHONPATH:+:$PYTHONPATH}" PYTHONDONTWRITEBYTECODE=1 \
    closing_lines '^=+ .* in [0-9.]+s' "$PYTHON_ENV/bin/python" -m pytest -p no:cacheprovider client/python
}
check_python_types() { (cd client/python && "$PYTHON_ENV/bin/python" -m mypy --cache-dir "$TARGET/mypy"); }
# Types, state and whether the committed files are what the sources give.
check_console() {
  local built="$TARGET/console" code=0
  need_console_tools || code=$?
  [ $code -ne 77 ] || warn 'SKIPPED: the console: Node.js or its packages cannot be had'
  [ $code -eq 0 ] || return $code
  (
    cd node/console
    npx tsc --noEmit || exit 1
    NO_COLOR=1 closing_lines '^ *Tests ' npx vitest run || exit 1
    CONSOLE_OUT="$built" npx vite build --logLevel warn || exit 1
    diff -rq dist "$built" || { fail "node/console/dist is not what its sources give: run 'npm run build' in node/console"; exit 1; }
  )
}
test_console() {
  local code=0
  need_console_tools || code=$?
  [ $code -ne 0 ] || need_chromium || code=$?
  [ $code -ne 77 ] || warn 'SKIPPED: the console in a browser: Node.js or Chromium cannot be had'
  [ $code -eq 0 ] || return $code
  (
    cd node/console
    export CHROMIUM PANGEA_BIN="$TARGET/release/pangea" CONSOLE_RESULTS="$TARGET/console-results"
    NO_COLOR=1 closing_lines '^ *[0-9]+ (passed|failed|skipped)' npx playwright test
  )
}
check_scripts() {
  local script
  for script in scripts/*.sh .ci/run; do bash -n "$script" || return 1; done
  "$PYTHON_ENV/bin/shellcheck" -x -P scripts scripts/*.sh .ci/run
}

run_tests() {
  local began
  began=$(date +%s)
  cd "$REPOSITORY"
  need_build_tools
  need_rust_component cargo-fmt rustfmt
  need_rust_component cargo-clippy clippy
  need_capnp
  need_namespaces
  need_software_gpu
  need_systemd_analyze
  need_ssh_server
  need_prometheus
  need_package_checks
  need_python_env
  need_package_env
  need_cargo_deny
  if need_mdbook; then export MDBOOK; else warn 'SKIPPED: the book as HTML: no prebuilt mdBook can be had'; fi
  mkdir -p "$TARGET"
  : >"$CLOSING"
  : >"$SKIPS"
  export PANGEA_TEST_MODELS="${PANGEA_TEST_MODELS:-$HOME/.cache/pangea/test-models}"

  stage 'Format' check_format
  stage 'Scripts: syntax and shellcheck' check_scripts
  stage 'Python: types' check_python_types
  stage 'Licences, duplicates, sources' check_dependencies
  stage 'Advisories' check_advisories
  stage 'Clippy' check_lints
  stage 'Documentation' check_documentation
  stage 'Console: types, state, built files' check_console
  stage 'Build' build_everything
  if [ "$FAILED_STAGES" -eq 0 ] || [ -x "$TARGET/release/pangea" ]; then
    stage 'Test models' fetch_test_models
    forbid_skips
    stage 'Rust: unit, property, simulated world, processes' run_rust_tests
    stage 'Python' run_python_tests
    stage 'Console: in a browser' test_console
  fi

  heading "Stages, $(($(date +%s) - began)) s in total"
  printf '%s\n' "$STAGES"
  [ "$FAILED_STAGES" -eq 0 ] || fail "$FAILED_STAGES of the stages FAILED"
  if [ -s "$SKIPS" ]; then
    warn "$(grep -c . "$SKIPS") tests were skipped:"
    sort -u "$SKIPS" >&2
  else
    note 'No test was skipped'
  fi
  # The output ends with the runners' closing lines, without those of empty runs.
  grep -vE '^test result: ok\. 0 passed; 0 failed; 0 ignored' "$CLOSING" || true
  rm -f "$CLOSING" "$SKIPS"
  [ "$FAILED_STAGES" -eq 0 ]
}

# ---- menu --------------------------------------------------------------------------------------------------------

# Every entry of every script's header, one per line, sorted by number: number, title, sub, subtitle, script, arguments;
# the fields are separated by unit separators.
menu_entries() {
  local script line number title sub subtitle arguments rest
  for script in "$REPOSITORY"/scripts/*.sh; do
    while IFS= read -r line; do
      line=${line#'# menu: '}
      arguments='' sub='' subtitle=''
      case "$line" in *' | '*) arguments=${line##* | } line=${line% | *} ;; esac
      number=${line%% *} title=${line#* }
      case "$title" in
        *' > '*)
          rest=${title#* > } title=${title%% > *}
          sub=${rest%% *} subtitle=${rest#* }
          ;;
      esac
      printf '%s\037%s\037%s\037%s\037%s\037%s\n' "$number" "$title" "$sub" "$subtitle" "$script" "$arguments"
    done < <(sed -n '/^#/!q;/^# menu: [0-9]/p' "$script")
  done | sort -t "$(printf '\037')" -k1,1n -k3,3
}

# Prints the entries; those with subentries are listed once, with the subentries below.
show_menu() {
  local number title sub subtitle script arguments last=''
  printf '\n%sPangea%s\n\n' "$BOLD" "$PLAIN"
  while IFS=$'\037' read -r number title sub subtitle script arguments; do
    [ "$number" = "$last" ] || printf '  %3s  %s\n' "$number" "$title"
    [ -z "$sub" ] || printf '       %3s  %s\n' "$sub" "$subtitle"
    last=$number
  done <<<"$ENTRIES"
  printf '    q  Quit\n\n'
}

# Runs the entry of a choice: its number, its subentry (3a), or both (18 3a).
choose() { # choice
  local choice=$1 number title sub subtitle script arguments subs='' answer
  while IFS=$'\037' read -r number title sub subtitle script arguments; do
    if [ -z "$sub" ] && [ "$choice" = "$number" ]; then
      # Arguments are separate words. The menu returns if a script fails or is interrupted.
      # shellcheck disable=SC2086
      bash "$script" $arguments <&3 || warn "ended with exit code $?"
      return
    elif [ -n "$sub" ] && { [ "$choice" = "$sub" ] || [ "$choice" = "$number $sub" ] || [ "$choice" = "$number/$sub" ]; }; then
      # shellcheck disable=SC2086
      bash "$script" $arguments <&3 || warn "ended with exit code $?"
      return
    elif [ -n "$sub" ] && [ "$choice" = "$number" ]; then
      subs="$subs $sub"
    fi
  done <<<"$ENTRIES"
  if [ -n "$subs" ]; then
    printf 'Which of%s? ' "$subs"
    IFS= read -r answer <&3 || return 0
    case " $subs " in *" ${answer:-none} "*) choose "$answer" ;; *) warn "'$answer' is not one of$subs" ;; esac
  else
    warn "'$choice' is not in the menu"
  fi
}

menu() {
  local choice
  ENTRIES=$(menu_entries)
  exec 3<&0
  # Ctrl-C ends the chosen script, not the menu.
  trap 'printf "\n"' INT
  while :; do
    show_menu
    printf 'Choice: '
    IFS= read -r choice <&3 || { printf '\n'; return 0; }
    case "$choice" in
      '') ;;
      q | Q | quit | exit) return 0 ;;
      *) choose "$choice" ;;
    esac
  done
}

case "${1:-}" in
  '') menu ;;
  build | demo | bench | book | fuzz | soak | crowd | sim | chaos | mutants | aarch64) subcommand=$1; shift; "$subcommand" "$@" ;;
  test) shift; [ $# -eq 0 ] || { fail "test takes no arguments"; exit 2; }; run_tests ;;
  help | -h | --help) usage ;;
  *) fail "there is no subcommand '$1'"; usage >&2; exit 2 ;;
esac
