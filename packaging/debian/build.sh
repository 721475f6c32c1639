#!/usr/bin/env bash
# Builds a Debian package of this checkout, for this machine's Debian release and architecture, from what ./run setup has
# installed: nothing is fetched. Prints the package's path.
#
#   packaging/debian/build.sh [FOLDER]      where the package goes; the checkout's dist without
#
# Debian's own Python packages are older than what is needed here, so that they come along, in /usr/lib/tpm-mtls, where
# they disturb nobody; and so does OpenSSL's tpm2 provider, where Debian's is too old. DEBFULLNAME and DEBEMAIL say who
# made it (as for dch(1)), COMPRESSION how it is compressed (xz; see dpkg-deb(1)).
set -euo pipefail
umask 022
OUT=$(realpath -m "${1:-$(dirname "$0")/../../dist}")
readonly OUT
cd "$(dirname "$0")/../.."
readonly PYTHON=$PWD/.venv/bin/python
readonly HOME_OF_IT=usr/lib/tpm-mtls # beside Debian's folders for Python: nobody else imports from it

give_up() { # what failed, what to do
  printf 'tpm-mtls: error: %s\ntpm-mtls: hint: %s\n' "$1" "$2" >&2
  exit 1
}

python_of_the_system() { # such as 3.11; compiled modules are for one version
  /usr/bin/python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])'
}

check_machine() {
  command -v dpkg-deb >/dev/null || give_up "there is no dpkg-deb" "build it on Debian, for Debian"
  command -v objdump >/dev/null || give_up "there is no objdump" "apt-get install binutils"
  [ -x "$PYTHON" ] || give_up "there is no environment in .venv" "./run setup"
  local ours theirs
  ours=$("$PYTHON" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
  theirs=$(python_of_the_system)
  [ "$ours" = "$theirs" ] ||
    give_up "the environment is for Python $ours, the system has $theirs" "make it again: rm -r .venv; PYTHON=/usr/bin/python3 ./run setup"
}

install_program() { # root of the package
  local python home=$1/$HOME_OF_IT site wheel
  python=$(python_of_the_system)
  site=$home/lib/python$python/site-packages
  mkdir -p "$site" "$home/bin" "$1/usr/bin"
  "$PYTHON" -m hatchling build --target wheel --directory "$scratch/wheel" >/dev/null 2>&1 ||
    give_up "the wheel cannot be built" "see why: .venv/bin/python -m hatchling build"
  wheel=$(echo "$scratch"/wheel/*.whl)
  "$PYTHON" scripts/vendor.py "$wheel" "$site" >"$scratch/vendored"
  "$PYTHON" -m zipfile -e "$wheel" "$site"
  # an environment as python3 -m venv makes one (PEP 405), whose interpreter is Debian's
  printf 'home = /usr/bin\ninclude-system-site-packages = false\nversion = %s\n' "$python" >"$home/pyvenv.cfg"
  ln -s "/usr/bin/python$python" "$home/bin/python3"
  # isolated: neither the environment nor the user's folder changes what root runs
  printf '#!/%s/bin/python3 -I\nimport sys\n\nfrom tpm_mtls.cli import run\n\nsys.exit(run())\n' "$HOME_OF_IT" >"$home/bin/tpm-mtls"
  chmod 755 "$home/bin/tpm-mtls"
  ln -s ../lib/tpm-mtls/bin/tpm-mtls "$1/usr/bin/tpm-mtls"
  if [ -e .venv/lib/ossl-modules/tpm2.so ]; then
    install -D -m 644 .venv/lib/ossl-modules/tpm2.so "$home/lib/ossl-modules/tpm2.so"
  fi
  find "$home" -name '*.so*' -exec chmod 644 {} +
}

install_files() { # root of the package
  local doc=$1/usr/share/doc/tpm-mtls page
  install -D -m 644 -t "$1/usr/lib/systemd/system" packaging/systemd/*.{service,socket,timer}
  install -D -m 644 -t "$1/usr/lib/sysusers.d" packaging/sysusers.d/tpm-mtls.conf
  install -D -m 644 -t "$1/usr/lib/tmpfiles.d" packaging/tmpfiles.d/tpm-mtls.conf
  install -D -m 644 -t "$1/etc/logrotate.d" packaging/logrotate.d/tpm-mtls
  install -D -m 644 -t "$1/etc/tpm-mtls" packaging/config.toml
  install -D -m 644 -t "$doc/examples" packaging/agent.allow.toml
  cp -r --no-preserve=mode packaging/systemd/drop-ins "$doc/examples/"
  for page in packaging/man/*.1; do
    [ -e "$page" ] || continue
    mkdir -p "$1/usr/share/man/man1"
    gzip -9n <"$page" >"$1/usr/share/man/man1/${page##*/}.gz"
  done
  install -D -m 644 packaging/debian/copyright "$doc/copyright"
  printf '%s (%s) unstable; urgency=medium\n\n  * See CHANGELOG.md.\n\n -- %s  %s\n' \
    tpm-mtls "$version" "$maintainer" "$(date -uRd "@$SOURCE_DATE_EPOCH")" | gzip -9n >"$doc/changelog.Debian.gz"
  gzip -9n <CHANGELOG.md >"$doc/changelog.gz"
}

packages_of_libraries() { # root of the package; those that the modules are linked to, and what libtss2 opens by itself
  local modules linked library package
  mapfile -d '' modules < <(find "$1" -name '*.so*' -print0)
  linked=$(ldd "${modules[@]}" 2>/dev/null)
  {
    objdump -p "${modules[@]}" 2>/dev/null | sed -n 's/^ *NEEDED *//p' | sort -u |
      while read -r library; do sed -n "s|.*[[:space:]]$library => \(/[^ ]*\) .*|\1|p" <<<"$linked"; done
    printf '%s\n' /usr/lib/*/libtss2-tcti-{device,cmd}.so.0
  } | sort -u | while read -r library; do
    package=$(dpkg-query -S "$(realpath "$library")" 2>/dev/null || dpkg-query -S "$library" 2>/dev/null || true)
    [ -n "$package" ] || continue # the package's own
    printf '%s\n' "${package%%:*}"
  done | sort -u
}

describe() { # root of the package
  local python next depends size
  python=$(python_of_the_system)
  next=${python%.*}.$((${python#*.} + 1))
  depends="python3 (>= $python), python3 (<< $next~), openssl, systemd, procps, curl, $(packages_of_libraries "$1" | paste -sd , | sed 's/,/, /g')"
  [ -e "$1/$HOME_OF_IT/lib/ossl-modules/tpm2.so" ] || depends+=", tpm2-openssl (>= 1.2)"
  size=$(du -sk --apparent-size "$1" | cut -f 1)
  mkdir "$1/DEBIAN"
  cat >"$1/DEBIAN/control" <<TEXT
Package: tpm-mtls
Version: $version
Architecture: $(dpkg --print-architecture)
Maintainer: $maintainer
Installed-Size: $size
Depends: $depends
Recommends: tpm-udev
Suggests: swtpm, swtpm-tools, logrotate
Section: net
Priority: optional
Description: TLS identities that are born in the TPM
 A device's TPM makes its own TLS key at first boot, a CA certifies it, and from
 then on any program does mutual TLS with the signature made inside the chip.
 .
 This package has the command, the services of devices, of the backend and of
 the CA, none of which starts before it is told to, and the Python packages that
 they need, for themselves alone.
TEXT
  (cd "$1" && find etc -type f | sort | sed 's,^,/,') >"$1/DEBIAN/conffiles"
  (cd "$1" && find usr etc -type f -print0 | sort -z | xargs -0 md5sum) >"$1/DEBIAN/md5sums"
  install -m 755 -t "$1/DEBIAN" packaging/debian/{postinst,prerm,postrm}
}

check_machine
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
version=$("$PYTHON" -c 'import tomllib; print(tomllib.load(open("pyproject.toml", "rb"))["project"]["version"])')-1
maintainer="${DEBFULLNAME:-tpm-mtls} <${DEBEMAIL:-root@localhost}>"
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || stat -c %Y pyproject.toml)}
export SOURCE_DATE_EPOCH
package=$OUT/tpm-mtls_${version}_$(dpkg --print-architecture).deb

root=$scratch/root
mkdir "$root"
install_program "$root"
install_files "$root"
describe "$root"
find "$root" -newermt "@$SOURCE_DATE_EPOCH" -exec touch --no-dereference --date="@$SOURCE_DATE_EPOCH" {} +
mkdir -p "$OUT"
dpkg-deb --root-owner-group -Z"${COMPRESSION:-xz}" --build "$root" "$package" >/dev/null
printf '%s\n' "$package"
