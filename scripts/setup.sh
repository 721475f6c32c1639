#!/usr/bin/env bash
# Brings a machine to where `./run demo` and `./run test` work: system packages, a virtual environment in .venv, and
# the tpm2 provider >= 1.3 inside that environment. Looks first; says what it installs before it does; a second run
# finds everything in place and prints nothing. What only the tests need is installed with the argument `tests`.
set -euo pipefail
cd "$(dirname "$0")/.."

readonly VENV=.venv
readonly PROVIDER_MINIMUM=1.2.0 # 1.1 cannot do TLS client authentication; 1.2 signs on one thread only
readonly PROVIDER_SUITE=trixie  # the Debian release whose tpm2-openssl package (1.3.0) also runs on Debian 12

# kind : what shows that the package is there : package
readonly NEEDED=(
  "command:swtpm:swtpm"
  "command:swtpm_localca:swtpm-tools"
  "command:tpm2_getcap:tpm2-tools"
  "command:gcc:gcc"
  "command:pkg-config:pkg-config"
  "command:openssl:openssl"
  "command:curl:curl"
  "command:nginx:nginx-light"
  "pkgconf:tss2-esys:libtss2-dev"
  "python:interpreter:python3"
  "python:venv:python3-venv"
  "python:headers:python3-dev"
)

# programs that the tests use as peers, and to see the same with other eyes
readonly FOR_TESTS=(
  "command:node:nodejs" # the agent is tried with unchanged programs
  "command:cryptsetup:cryptsetup-bin"
  "command:tshark:tshark" # opens captures of TPM commands
  "command:pki:strongswan-pki"
  "file:/usr/lib/ipsec/plugins/libstrongswan-openssl.so:libstrongswan-standard-plugins" # pki reads no EC keys without
  "command:tpm2-abrmd:tpm2-abrmd"
  "file:/usr/lib/*/libtss2-tcti-tabrmd.so.0:libtss2-tcti-tabrmd0" # Debian 13 does not install it with tpm2-abrmd
  "command:dbus-daemon:dbus-daemon"
  "command:stunnel:stunnel4"
  "command:mosquitto:mosquitto"
  "command:sshd:openssh-server"
  "command:tpm2_ptool:libtpm2-pkcs11-tools"
  "file:/usr/lib/*/pkcs11/libtpm2_pkcs11.so:libtpm2-pkcs11-1"
  "command:make:make" # the C example
  "command:dot:graphviz" # the diagrams
  "command:groff:groff-base" # the manual pages
  "command:systemd-analyze:systemd" # the units
)

WANTED=("${NEEDED[@]}")
[ "${1:-}" != tests ] || WANTED+=("${FOR_TESTS[@]}")
readonly WANTED

changed=
say() { printf 'setup: %s\n' "$*" >&2; changed=yes; }

give_up() { # what failed, what to do by hand
  printf 'tpm-mtls: error: %s\ntpm-mtls: hint: %s\n' "$1" "$2" >&2
  exit 1
}

find_python() { # empty when there is none; the packages come first
  local candidate
  for candidate in "${PYTHON:-python3}" /usr/bin/python3; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      printf '%s\n' "$candidate"
      return
    fi
  done
}

is_missing() { # kind, what
  case $1 in
    command) ! PATH="$PATH:/usr/sbin:/sbin" command -v "$2" >/dev/null ;;
    file) ! compgen -G "$2" >/dev/null ;;
    pkgconf) ! command -v pkg-config >/dev/null || ! pkg-config --exists "$2" ;;
    python)
      [ -n "$python" ] || return 0
      case $2 in
        interpreter) return 1 ;;
        venv) ! "$python" -c 'import venv, ensurepip' 2>/dev/null ;;
        headers) ! "$python" -c 'import pathlib, sys, sysconfig; sys.exit(not pathlib.Path(sysconfig.get_path("include"), "Python.h").exists())' ;;
      esac ;;
  esac
}

missing_packages() {
  local entry kind what package
  for entry in "${WANTED[@]}"; do
    IFS=: read -r kind what package <<<"$entry"
    if is_missing "$kind" "$what"; then printf '%s\n' "$package"; fi
  done
}

quietly() { # runs a command; what it says is shown only when it fails
  local said status=0
  said=$("$@" 2>&1) || status=$?
  [ $status = 0 ] || printf '%s\n' "$said" >&2
  return $status
}

as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi; }

install_packages() {
  local packages by_hand
  mapfile -t packages < <(missing_packages)
  [ ${#packages[@]} -gt 0 ] || return 0
  by_hand="install by hand: ${packages[*]}"
  command -v apt-get >/dev/null || give_up "this machine has no apt-get" "$by_hand (or your distribution's packages of the same programs)"
  [ "$(id -u)" = 0 ] || command -v sudo >/dev/null || give_up "packages are missing and there is no sudo" "$by_hand, as root: apt-get install ${packages[*]}"
  say "installing with apt-get: ${packages[*]}"
  quietly as_root apt-get -qq update || give_up "apt-get update failed; is there a network?" "$by_hand"
  # RUNLEVEL=1: no services are started; nginx is wanted as a program for the tests, not as a running server
  quietly as_root env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get -qq install -y --no-install-recommends "${packages[@]}" ||
    give_up "apt-get could not install: ${packages[*]}" "$by_hand"
}

make_environment() {
  local stamp wanted
  wanted=$(cat constraints.txt pyproject.toml | sha256sum; "$python" -c 'import sys; print(sys.version)')
  stamp="$VENV/.installed-from"
  [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ] || return 0
  say "making the Python environment in $VENV (tpm2-pytss is compiled; about two minutes)"
  "$python" -m venv "$VENV" || give_up "cannot make a virtual environment" "install python3-venv"
  quietly "$VENV/bin/pip" --quiet --disable-pip-version-check install --require-hashes -r constraints.txt ||
    give_up "pip could not install the packages of constraints.txt" "is there a network? behind a proxy or a mirror, set PIP_INDEX_URL"
  quietly "$VENV/bin/pip" --quiet --disable-pip-version-check install --no-deps --no-build-isolation --editable . ||
    give_up "pip could not install this project" "run $VENV/bin/pip install --no-deps --no-build-isolation --editable . to see why"
  printf '%s\n' "$wanted" >"$stamp"
}

provider_version_ok() { # folder that holds tpm2.so
  [ -e "$1/tpm2.so" ] || return 1
  local version
  version=$(strings_of_package_version "$1")
  [ -n "$version" ] && [ "$(printf '%s\n' "$PROVIDER_MINIMUM" "$version" | sort -V | head -n 1)" = "$PROVIDER_MINIMUM" ]
}

strings_of_package_version() { # the provider says its version only once it is connected to a TPM; the file says it too
  LC_ALL=C grep -aoE '(^|[^0-9.])1\.[0-9]+\.[0-9]+([^0-9.]|$)' "$1/tpm2.so" | tr -dc '0-9.\n' | head -n 1
}

install_provider() {
  local system own="$VENV/lib/ossl-modules"
  system=$(openssl version -m | sed -n 's/^MODULESDIR: "\(.*\)"$/\1/p')
  if provider_version_ok "$own" || provider_version_ok "$system"; then return 0; fi
  local candidate
  candidate=$(apt-cache policy tpm2-openssl 2>/dev/null | sed -n 's/^  Candidate: \([0-9.]*\).*/\1/p')
  if [ -n "$candidate" ] && dpkg --compare-versions "$candidate" ge "$PROVIDER_MINIMUM"; then
    say "installing with apt-get: tpm2-openssl $candidate"
    quietly as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends tpm2-openssl ||
      give_up "apt-get could not install tpm2-openssl" "install it by hand"
    return 0
  fi
  fetch_provider "$own"
}

# Debian 12 has 1.1.1 only. The next release's package runs here as it is; it is unpacked into the environment, and
# apt's own sources stay as they are: a throw-away apt state folder points at the same mirror with the next suite's name.
fetch_provider() { # folder to put tpm2.so into
  local by_hand="install the tpm2-openssl provider 1.3 or newer and set OPENSSL_MODULES to the folder of its tpm2.so"
  command -v apt-get >/dev/null || give_up "no tpm2 provider $PROVIDER_MINIMUM or newer was found" "$by_hand"
  local mirror scratch
  mirror=$(apt-get indextargets --format '$(REPO_URI)' 2>/dev/null | grep -v -i security | head -n 1)
  [ -n "$mirror" ] || give_up "apt has no package mirror configured" "$by_hand"
  say "fetching the tpm2 provider from $PROVIDER_SUITE into $1"
  scratch=$(mktemp -d)
  mkdir -p "$scratch"/{lists/partial,archives/partial,etc}
  printf 'deb %s %s main\n' "$mirror" "$PROVIDER_SUITE" >"$scratch/etc/sources.list"
  chmod -R a+rX "$scratch"
  local options=(-qq -o "Dir::Etc::sourcelist=$scratch/etc/sources.list" -o Dir::Etc::sourceparts=/dev/null
    -o "Dir::State::lists=$scratch/lists" -o "Dir::Cache::archives=$scratch/archives" -o "Dir::Cache::pkgcache=" -o "Dir::Cache::srcpkgcache="
    -o APT::Sandbox::User=root)
  (cd "$scratch" && quietly apt-get "${options[@]}" update && quietly apt-get "${options[@]}" download tpm2-openssl &&
    dpkg -x tpm2-openssl_*.deb unpacked) ||
    { rm -rf "$scratch"; give_up "the tpm2 provider could not be fetched" "$by_hand"; }
  mkdir -p "$1"
  install -m 0644 "$(find "$scratch/unpacked" -name tpm2.so)" "$1/tpm2.so.new"
  mv "$1/tpm2.so.new" "$1/tpm2.so"
  rm -rf "$scratch"
}

python=$(find_python)
install_packages
python=$(find_python)
[ -n "$python" ] || give_up "no Python 3.11 or newer was found" "install one, or name it: PYTHON=/path/to/python3 ./run setup"
make_environment
install_provider
[ -z "$changed" ] || say "ready; ./run uses it by itself, a shell after: . $VENV/bin/activate"
