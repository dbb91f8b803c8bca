#!/usr/bin/env bash
# Packages of the built binary: a .deb for Debian and its relatives. Nothing is installed here.
set -euo pipefail
# shellcheck source=scripts/toolchain.sh
. "$(dirname "${BASH_SOURCE[0]}")/toolchain.sh"

usage() {
  cat <<'TEXT'
Usage: scripts/package.sh deb [FOLDER]

  deb [FOLDER]  builds the binary and writes pangea_VERSION_ARCHITECTURE.deb into FOLDER (target): the binary, its manual
                pages, shell completions, and the unit of a system service, which is not started
TEXT
}

deb() {
  local folder=${1:-$TARGET} version architecture root size
  has dpkg-deb || { fail "dpkg-deb is missing: build the package on Debian or a relative"; exit 2; }
  # shellcheck disable=SC2119 # no further arguments for the build
  need_pangea
  version=$("$PANGEA_BIN" --version | cut -d' ' -f2)
  architecture=$(dpkg --print-architecture)
  root=$(mktemp -d)
  # The folder is known now, and gone when the script ends.
  # shellcheck disable=SC2064
  trap "rm -rf '$root'" EXIT
  install -D -m 755 "$PANGEA_BIN" "$root/usr/bin/pangea"
  ! has strip || strip --strip-unneeded "$root/usr/bin/pangea"
  "$PANGEA_BIN" man "$root/usr/share/man/man1"
  gzip -9n "$root"/usr/share/man/man1/*.1
  mkdir -p "$root/usr/share/bash-completion/completions" "$root/usr/share/zsh/vendor-completions" \
    "$root/usr/share/fish/vendor_completions.d" "$root/lib/systemd/system" "$root/usr/share/doc/pangea" "$root/DEBIAN"
  "$PANGEA_BIN" completions bash >"$root/usr/share/bash-completion/completions/pangea"
  "$PANGEA_BIN" completions zsh >"$root/usr/share/zsh/vendor-completions/_pangea"
  "$PANGEA_BIN" completions fish >"$root/usr/share/fish/vendor_completions.d/pangea.fish"
  "$PANGEA_BIN" service install --system --dry-run \
    | sed 's|^ExecStart="[^"]*"|ExecStart="/usr/bin/pangea"|' >"$root/lib/systemd/system/pangea.service"
  install -m 644 "$REPOSITORY/README.md" "$root/usr/share/doc/pangea/README.md"
  size=$(du -sk "$root" | cut -f1)
  cat >"$root/DEBIAN/control" <<TEXT
Package: pangea
Version: $version
Architecture: $architecture
Maintainer: The Pangea developers <root@localhost>
Installed-Size: $size
Depends: libc6
Suggests: mesa-vulkan-drivers
Section: science
Priority: optional
Description: Pools the devices you own into one compute fabric
 A node that delegates matrix products and the layers of language models to
 its peers, checks what they compute, and serves the clients of today.
TEXT
  mkdir -p "$folder"
  dpkg-deb -Zgzip --root-owner-group --build "$root" "$folder/pangea_${version}_$architecture.deb" >/dev/null
  note "$folder/pangea_${version}_$architecture.deb"
}

case "${1:-}" in
  deb) shift; deb "$@" ;;
  -h | --help | help | '') usage ;;
  *) usage >&2; exit 2 ;;
esac
