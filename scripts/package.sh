#!/usr/bin/env bash
# Packages of the built binary. Nothing is installed here but the tools that packages are made with, into target/package-env.
#
# menu: 12 Packages: .deb, wheel, container image, Homebrew formula and list of components | all
set -euo pipefail
# shellcheck source=scripts/toolchain.sh
. "$(dirname "${BASH_SOURCE[0]}")/toolchain.sh"

usage() {
  cat <<'TEXT'
Usage: scripts/package.sh PACKAGE [FOLDER]

Builds the binary, unless PANGEA_BIN names one, and writes a package of it into FOLDER (target):

  deb [FOLDER]    pangea_VERSION_ARCHITECTURE.deb, for Debian and its relatives: the binary, its manual pages, shell
                  completions, the book, and the unit of a system service, which is not started
  wheel [FOLDER]  pangea-VERSION-py3-none-PLATFORM.whl: the binary and the Python client, for pip, pipx and uv. On Linux
                  PLATFORM says the oldest C library that the binary runs with
  oci [FOLDER]    pangea_VERSION_ARCHITECTURE.oci.tar, a container image: the binary, the C library, certificates of
                  authorities and nothing else. Only on Linux
  brew [FOLDER [URL SHA256]]
                  pangea.rb, a Homebrew formula that builds the release whose source archive is at URL; without URL, the
                  formula has placeholders
  sbom [FOLDER]   pangea_VERSION.cdx.json: what the binary consists of, as CycloneDX. The .deb, the wheel and the
                  image hold it as well
  all [FOLDER]    each of them

The same checkout, compiler and tools give the same bytes. The time in them is SOURCE_DATE_EPOCH, else that of the last commit.
TEXT
}

# Folders that are gone when the script ends.
LEFTOVERS=()
# The form of the list is for a bash that calls an empty list unset, as that of macOS does.
trap 'rm -rf ${LEFTOVERS[@]+"${LEFTOVERS[@]}"}' EXIT

# Sets FRESH to a new temporary folder.
fresh_folder() {
  FRESH=$(mktemp -d)
  chmod 755 "$FRESH"
  LEFTOVERS+=("$FRESH")
}

# Copies a file to a place whose folders may be missing.
place() { # mode file place
  mkdir -p "$(dirname "$3")"
  install -m "$1" "$2" "$3"
}

# Sets VERSION and SOURCE_DATE_EPOCH, builds the binary, and puts a copy without debugging symbols at BINARY.
prepare() {
  [ -z "${BINARY:-}" ] || return 0
  # shellcheck disable=SC2119 # no further arguments for the build
  need_pangea
  VERSION=$("$PANGEA_BIN" --version | cut -d' ' -f2)
  SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git -C "$REPOSITORY" log -1 --format=%ct 2>/dev/null || date +%s)}
  export SOURCE_DATE_EPOCH
  fresh_folder
  BINARY="$FRESH/pangea"
  install -m 755 "$PANGEA_BIN" "$BINARY"
  case "$(uname -s)" in
    Linux) ! has strip || strip --strip-unneeded "$BINARY" ;;
    Darwin) ! has strip || strip -S "$BINARY" ;;
  esac
}

# Sets SBOM to the list of components.
need_sbom() {
  [ -z "${SBOM:-}" ] || return 0
  need_rust
  need_package_env
  fresh_folder
  local triple
  triple=$(rustc -vV | sed -n 's/^host: //p')
  (cd "$REPOSITORY" && cargo metadata --format-version 1 --locked --filter-platform "$triple") >"$FRESH/metadata.json"
  "$PACKAGE_ENV/bin/python" "$REPOSITORY/scripts/sbom.py" "$SOURCE_DATE_EPOCH" <"$FRESH/metadata.json" >"$FRESH/pangea.cdx.json"
  SBOM="$FRESH/pangea.cdx.json"
}

sbom() {
  local folder=${1:-$TARGET}
  prepare
  need_sbom
  mkdir -p "$folder"
  install -m 644 "$SBOM" "$folder/pangea_$VERSION.cdx.json"
  note "$folder/pangea_$VERSION.cdx.json"
}

# ---- deb ---------------------------------------------------------------------------------------------------------

# Puts the README, the changelog and the pages of the book where people look for the documents of a package: as text, so that making a
# package needs no mdBook. What pages link to outside of the book lies below repository/, as in the book as HTML.
documents() { # folder
  local documents=$1 link page
  mkdir -p "$documents/book"
  install -m 644 "$REPOSITORY/LICENSE" "$documents"
  sed -e 's|](node/book/src/|](book/|g' -e 's|](node/|](repository/node/|g' "$REPOSITORY/README.md" >"$documents/README.md"
  install -m 644 "$REPOSITORY"/node/book/src/*.svg "$documents/book"
  for page in "$REPOSITORY"/node/book/src/*.md; do
    sed -e 's|](\.\./\.\./\.\./|](../repository/|g' -e 's|](\.\./\.\./|](../repository/node/|g' "$page" >"$documents/book/${page##*/}"
  done
  chmod 644 "$documents/README.md" "$documents"/book/*.md
  { grep -oh '](\(\.\./\)\{0,1\}repository/[^)#]*' "$documents/README.md" "$documents"/book/*.md || true; } \
    | sed 's|.*repository/||' | sort -u | while IFS= read -r link; do
      place 644 "$REPOSITORY/$link" "$documents/repository/$link"
    done
  # What the page on monitoring is about.
  install -m 644 "$REPOSITORY"/node/monitoring/* "$documents/repository/node/monitoring"
  # The policy of Debian names this file, above the other pages.
  sed 's|](\([a-z-]*\.md\)|](book/\1|g' "$REPOSITORY/node/book/src/changelog.md" | gzip -9n >"$documents/changelog.gz"
}

deb() {
  local folder=${1:-$TARGET} architecture root documents size depends
  has dpkg-deb || { fail "dpkg-deb is missing: build the package on Debian or a relative"; exit 2; }
  has dpkg-shlibdeps || install_packages 'The tool that finds the libraries of a package' 'dpkg-dev' ''
  prepare
  need_sbom
  architecture=$(dpkg --print-architecture)
  fresh_folder
  root="$FRESH/root" documents="$FRESH/root/usr/share/doc/pangea"
  place 755 "$BINARY" "$root/usr/bin/pangea"
  "$PANGEA_BIN" man "$root/usr/share/man/man1"
  gzip -9n "$root"/usr/share/man/man1/*.1
  mkdir -p "$root/usr/share/bash-completion/completions" "$root/usr/share/zsh/vendor-completions" \
    "$root/usr/share/fish/vendor_completions.d" "$root/lib/systemd/system" "$documents" "$root/DEBIAN"
  "$PANGEA_BIN" completions bash >"$root/usr/share/bash-completion/completions/pangea"
  "$PANGEA_BIN" completions zsh >"$root/usr/share/zsh/vendor-completions/_pangea"
  "$PANGEA_BIN" completions fish >"$root/usr/share/fish/vendor_completions.d/pangea.fish"
  "$PANGEA_BIN" service install --system --dry-run \
    | sed 's|^ExecStart="[^"]*"|ExecStart="/usr/bin/pangea"|' >"$root/lib/systemd/system/pangea.service"
  documents "$documents"
  ln -s LICENSE "$documents/copyright"
  gzip -9nc "$SBOM" >"$documents/pangea.cdx.json.gz"
  size=$(du -sk "$root" | cut -f1)
  # The tool reads the binary's symbols and asks dpkg which versions of which packages have them; it expects a source package.
  mkdir "$FRESH/debian"
  printf 'Source: pangea\n\nPackage: pangea\nArchitecture: any\n' >"$FRESH/debian/control"
  depends=$(cd "$FRESH" && dpkg-shlibdeps -O root/usr/bin/pangea | sed -n 's/^shlibs:Depends=//p')
  cat >"$root/DEBIAN/control" <<TEXT
Package: pangea
Version: $VERSION
Architecture: $architecture
Maintainer: The Pangea developers <root@localhost>
Installed-Size: $size
Depends: $depends
Recommends: ca-certificates
Suggests: mesa-vulkan-drivers
Section: science
Priority: optional
Description: Pools the devices you own into one compute fabric
 A node that delegates matrix products and the layers of language models to
 its peers, checks what they compute, and serves the clients of today.
TEXT
  # A service that somebody enabled ends with the package; systemd reads the units again after each change.
  cat >"$root/DEBIAN/prerm" <<'TEXT'
#!/bin/sh
set -e
if [ "$1" = remove ] && [ -d /run/systemd/system ]; then systemctl --no-reload disable --now pangea.service || true; fi
TEXT
  cat >"$root/DEBIAN/postrm" <<'TEXT'
#!/bin/sh
set -e
if [ -d /run/systemd/system ]; then systemctl daemon-reload || true; fi
TEXT
  cp "$root/DEBIAN/postrm" "$root/DEBIAN/postinst"
  chmod 755 "$root/DEBIAN/prerm" "$root/DEBIAN/postrm" "$root/DEBIAN/postinst"
  mkdir -p "$folder"
  dpkg-deb -Zgzip --root-owner-group --build "$root" "$folder/pangea_${VERSION}_$architecture.deb" >/dev/null
  note "$folder/pangea_${VERSION}_$architecture.deb"
}

# ---- wheel -------------------------------------------------------------------------------------------------------

# The wheel of the Python client, with the binary among its scripts, so that installers put it on the PATH. The binary is the one that
# is built already: maturin would build it again with `cargo rustc -p pangea-node`, whose dependencies have other features than those of
# the workspace.
wheel() {
  local folder=${1:-$TARGET} sources unpacked platform
  prepare
  need_sbom
  need_package_env
  local python="$PACKAGE_ENV/bin/python"
  fresh_folder
  # A copy, because building leaves files beside the sources; the schemas become files there, which are links in the checkout.
  sources="$FRESH/sources" unpacked="$FRESH/pangea-$VERSION"
  mkdir "$sources" "$FRESH/client" "$FRESH/raw" "$FRESH/done"
  (cd "$REPOSITORY/client/python" && cp -RL pyproject.toml README.md src "$sources")
  rm -rf "$sources"/src/*.egg-info
  find "$sources" -name __pycache__ -prune -exec rm -rf {} +
  "$python" -m pip wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation --no-index --wheel-dir "$FRESH/client" "$sources"
  [ -e "$FRESH/client/pangea-$VERSION-py3-none-any.whl" ] \
    || { fail "client/python/pyproject.toml has another version than the binary, which has $VERSION"; exit 1; }
  "$python" -m wheel unpack --dest "$FRESH" "$FRESH/client/pangea-$VERSION-py3-none-any.whl" >/dev/null
  place 755 "$BINARY" "$unpacked/pangea-$VERSION.data/scripts/pangea"
  place 644 "$SBOM" "$unpacked/pangea-$VERSION.dist-info/sboms/pangea.cdx.json"
  place 644 "$REPOSITORY/LICENSE" "$unpacked/pangea-$VERSION.dist-info/licenses/LICENSE"
  case "$(uname -s)" in
    Linux) platform="linux_$(uname -m)" ;;
    Darwin) platform="macosx_11_0_$(uname -m)" ;;
    *) fail "there are wheels for Linux and macOS only, not for $(uname -s)"; exit 2 ;;
  esac
  sed -i.before -e 's/^Root-Is-Purelib: .*/Root-Is-Purelib: false/' -e "s/^Tag: .*/Tag: py3-none-$platform/" \
    "$unpacked/pangea-$VERSION.dist-info/WHEEL"
  rm "$unpacked/pangea-$VERSION.dist-info/WHEEL.before"
  "$python" -m wheel pack --dest-dir "$FRESH/raw" "$unpacked" >/dev/null
  if [ "$(uname -s)" = Linux ]; then
    # Reads the versions of the symbols that the binary needs and names the platform after the C library that has them. Nothing may be
    # missing from it: no library is copied into the wheel.
    PATH="$PACKAGE_ENV/bin:$PATH" "$python" -m auditwheel repair --wheel-dir "$FRESH/done" "$FRESH"/raw/*.whl >"$FRESH/audit.log" 2>&1 \
      || { cat "$FRESH/audit.log" >&2; die 'auditwheel found a library that other systems may lack'; }
  else
    mv "$FRESH"/raw/*.whl "$FRESH/done"
  fi
  mkdir -p "$folder"
  local built
  built=$(basename "$FRESH"/done/*.whl)
  mv "$FRESH/done/$built" "$folder/$built"
  note "$folder/$built"
}

# ---- container image ---------------------------------------------------------------------------------------------

# The user that the image runs as; it owns the data directory.
IMAGE_USER=65532
IMAGE_DATA=/var/lib/pangea

sha256_of() { sha256sum "$1" | cut -d' ' -f1; }

# Writes a tar archive of a folder, the same bytes for the same files: sorted, of one time, without names of users.
archive() { # archive folder user [paths]
  local archive=$1 folder=$2 user=$3
  shift 3
  [ $# -gt 0 ] || set -- .
  tar --create --file "$archive" --directory "$folder" --format=gnu --sort=name --mtime="@$SOURCE_DATE_EPOCH" \
    --owner=":$user" --group=":$user" --numeric-owner --mode='u+rw,go-w' "$@"
}

# Puts a file into the image under its digest, and prints its descriptor: media type, size and digest.
blob() { # image file media-type
  local digest
  digest=$(sha256_of "$2")
  install -m 644 "$2" "$1/blobs/sha256/$digest"
  printf '{"mediaType":"%s","digest":"sha256:%s","size":%s}' "$3" "$digest" "$(wc -c <"$2" | tr -d ' ')"
}

# The files of the C library that the binary loads, by the paths that it looks for them at, and the loader.
libraries() { ldd "$BINARY" | sed -n -e 's|^.* => \(/[^ ]*\) .*|\1|p' -e 's|^[[:space:]]*\(/[^ ]*\) (.*|\1|p'; }

# A root file system with what every program needs that this one does.
base_layer() { # folder
  local root=$1 library authorities=''
  for library in $(libraries); do
    place 755 "$library" "$root$library"
  done
  for library in /etc/ssl/certs/ca-certificates.crt /etc/pki/tls/certs/ca-bundle.crt /etc/ssl/cert.pem; do
    [ -n "$authorities" ] || [ ! -s "$library" ] || authorities=$library
  done
  [ -n "$authorities" ] || install_packages 'Certificates of authorities (for downloads in the image)' 'ca-certificates' ''
  place 644 "${authorities:-/etc/ssl/certs/ca-certificates.crt}" "$root/etc/ssl/certs/ca-certificates.crt"
  printf 'root:x:0:0:root:/root:/sbin/nologin\npangea:x:%s:%s:pangea:%s:/sbin/nologin\n' "$IMAGE_USER" "$IMAGE_USER" "$IMAGE_DATA" >"$root/etc/passwd"
  printf 'root:x:0:\npangea:x:%s:\n' "$IMAGE_USER" >"$root/etc/group"
  printf 'passwd: files\ngroup: files\nhosts: files dns\n' >"$root/etc/nsswitch.conf"
  chmod 644 "$root"/etc/passwd "$root"/etc/group "$root"/etc/nsswitch.conf
  # Of the C library, whose licence wants to come along.
  for library in libc6 libgcc-s1; do
    [ ! -e "/usr/share/doc/$library/copyright" ] || place 644 "/usr/share/doc/$library/copyright" "$root/usr/share/doc/$library/copyright"
  done
}

oci() {
  local folder=${1:-$TARGET} architecture created image root name layer layers='' diffs='' config manifest
  [ "$(uname -s)" = Linux ] || { fail "the image holds a binary for Linux: build it there"; exit 2; }
  tar --version | grep -q GNU || { fail "GNU tar is missing: no other one writes the same archive twice"; exit 2; }
  prepare
  need_sbom
  case "$(uname -m)" in x86_64) architecture=amd64 ;; aarch64) architecture=arm64 ;; *) architecture=$(uname -m) ;; esac
  created=$(date -u -d "@$SOURCE_DATE_EPOCH" +%Y-%m-%dT%H:%M:%SZ)
  fresh_folder
  image="$FRESH/image" root="$FRESH/root"
  mkdir -p "$image/blobs/sha256" "$root/base" "$root/data$IMAGE_DATA" "$root/tmp/tmp" "$root/pangea"
  umask 022
  base_layer "$root/base"
  place 755 "$BINARY" "$root/pangea/usr/bin/pangea"
  place 644 "$REPOSITORY/LICENSE" "$root/pangea/usr/share/doc/pangea/LICENSE"
  place 644 "$SBOM" "$root/pangea/usr/share/doc/pangea/pangea.cdx.json"
  chmod 700 "$root/data$IMAGE_DATA"
  # A layer is compressed; the config names the digests of what is in it. The system comes first, so that images of several releases
  # share it.
  archive "$FRESH/base.tar" "$root/base" 0
  archive "$FRESH/pangea.tar" "$root/pangea" 0
  archive "$FRESH/data.tar" "$root/data" "$IMAGE_USER" "./${IMAGE_DATA#/}"
  tar --append --file "$FRESH/data.tar" --directory "$root/tmp" --format=gnu --mtime="@$SOURCE_DATE_EPOCH" \
    --owner=:0 --group=:0 --numeric-owner --mode=1777 ./tmp
  for layer in base data pangea; do
    diffs="$diffs${diffs:+,}\"sha256:$(sha256_of "$FRESH/$layer.tar")\""
    gzip -n "$FRESH/$layer.tar"
    layers="$layers${layers:+,}$(blob "$image" "$FRESH/$layer.tar.gz" application/vnd.oci.image.layer.v1.tar+gzip)"
  done
  cat >"$FRESH/config.json" <<TEXT
{"created":"$created","architecture":"$architecture","os":"linux","config":{"User":"$IMAGE_USER:$IMAGE_USER",\
"ExposedPorts":{"7777/tcp":{},"7777/udp":{},"8080/tcp":{},"52415/tcp":{}},\
"Env":["PATH=/usr/bin","HOME=$IMAGE_DATA","PANGEA_HOME=$IMAGE_DATA"],"Entrypoint":["/usr/bin/pangea"],"Cmd":["node"],\
"Volumes":{"$IMAGE_DATA":{}},"WorkingDir":"$IMAGE_DATA","StopSignal":"SIGTERM",\
"Labels":{"org.opencontainers.image.title":"pangea","org.opencontainers.image.version":"$VERSION",\
"org.opencontainers.image.licenses":"MIT OR Apache-2.0"}},"rootfs":{"type":"layers","diff_ids":[$diffs]},\
"history":[{"created":"$created","created_by":"C library and certificates"},\
{"created":"$created","created_by":"data directory"},{"created":"$created","created_by":"pangea $VERSION"}]}
TEXT
  config=$(blob "$image" "$FRESH/config.json" application/vnd.oci.image.config.v1+json)
  printf '{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":%s,"layers":[%s]}\n' "$config" "$layers" \
    >"$FRESH/manifest.json"
  manifest=$(blob "$image" "$FRESH/manifest.json" application/vnd.oci.image.manifest.v1+json)
  printf '{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[%s]}\n' \
    "${manifest%\}},\"platform\":{\"architecture\":\"$architecture\",\"os\":\"linux\"},\"annotations\":{\"org.opencontainers.image.ref.name\":\"$VERSION\"}}" \
    >"$image/index.json"
  printf '{"imageLayoutVersion":"1.0.0"}' >"$image/oci-layout"
  name="pangea_${VERSION}_$architecture.oci.tar"
  mkdir -p "$folder"
  archive "$folder/$name" "$image" 0 blobs index.json oci-layout
  note "$folder/$name"
}

# ---- Homebrew ----------------------------------------------------------------------------------------------------

brew_formula() {
  local folder=${1:-$TARGET} url=${2:-@URL@} sum=${3:-@SHA256@} homepage
  [ $# -ne 2 ] || { fail "brew takes URL and SHA256 together"; exit 2; }
  if [ $# -ge 3 ]; then
    case "$url" in https://*.tar.gz | https://*.tar.xz | https://*.tar.bz2 | https://*.zip) ;;
      *) fail "'$url' is not the https address of a source archive"; exit 2 ;;
    esac
    [[ $sum =~ ^[0-9a-f]{64}$ ]] || { fail "'$sum' is no SHA-256 digest: it has 64 hex digits"; exit 2; }
    case "$url" in *[\"\\\#]*) fail "'$url' has characters that belong in no address"; exit 2 ;; esac
  fi
  # The page of the repository that the archive is of.
  homepage=$(printf '%s' "$url" | sed -n 's|^\(https://[^/]*/[^/]*/[^/]*\)/.*|\1|p')
  mkdir -p "$folder"
  cat >"$folder/pangea.rb" <<TEXT
class Pangea < Formula
  desc "Pools the devices you own into one compute fabric with checked results"
  homepage "${homepage:-@HOMEPAGE@}"
  url "$url"
  sha256 "$sum"
  license any_of: ["MIT", "Apache-2.0"]

  depends_on "rust" => :build

  def install
    system "cargo", "install", *std_cargo_args(path: "node")
    generate_completions_from_executable(bin/"pangea", "completions")
    system bin/"pangea", "man", man1
  end

  service do
    run [opt_bin/"pangea", "node"]
    keep_alive successful_exit: false
    log_path var/"log/pangea.log"
    error_log_path var/"log/pangea.log"
  end

  test do
    ENV["PANGEA_HOME"] = testpath/"pangea"
    assert_match version.to_s, shell_output("#{bin}/pangea --version")
    product = shell_output("#{bin}/pangea matmul --size 64 --generate --verify --json")
    assert_equal [64, 64, 64], JSON.parse(product)["shape"]
  end
end
TEXT
  note "$folder/pangea.rb"
}

# ------------------------------------------------------------------------------------------------------------------

all() {
  local folder=${1:-$TARGET}
  ! has dpkg-deb || deb "$folder"
  wheel "$folder"
  [ "$(uname -s)" != Linux ] || oci "$folder"
  brew_formula "$folder"
  sbom "$folder"
}

what=${1:-help}
case "$what" in
  deb | wheel | oci | sbom | all)
    shift
    [ $# -le 1 ] || { fail "$what takes one folder"; exit 2; }
    "$what" "$@"
    ;;
  brew)
    shift
    [ $# -le 3 ] || { fail "brew takes a folder, an address and a digest"; exit 2; }
    brew_formula "$@"
    ;;
  -h | --help | help) usage ;;
  *) fail "there is no package '$what'"; usage >&2; exit 2 ;;
esac
