# Each page of the tutorial begins by reading this file into the shell (bash):
#
#   . ~/tpm-tutorial/page.sh 8         goes to page 8: for the first time, or once more in a new terminal
#   . ~/tpm-tutorial/page.sh 8 again   removes what was made on page 8, and goes there as for the first time
#
# A page works in a folder of its own, ~/tpm-tutorial/page-8, which begins as a copy of that of the page it builds on.
# One page runs at a time: what another page left running is ended, also when its terminal is closed by now.
#
#   up NAME COMMAND …   starts a server in the background, and waits until it prints its first line (to NAME.out)
#   down                ends what the pages run, servers and simulated TPMs
#   down NAME           ends that server

up() {
  down "$1"
  rm -f "$1.out" # what an earlier one printed says nothing of this one
  "${@:2}" < /dev/null > "$1.out" 2> "$1.log" &
  echo $! > "$1.pid"
  if ! timeout 30 sh -c 'until [ -s "$1.out" ]; do kill -0 "$2" || exit; sleep 0.1; done' up "$1" $! 2> /dev/null; then
    echo "$1 does not run; the last lines of $1.log:" >&2
    tail -n 3 "$1.log" >&2
    down "$1"
    return 1
  fi
}

down() {
  local file
  if [ $# -gt 0 ]; then
    _end_server "$1.pid"
  else
    for file in ~/tpm-tutorial/page-*/*.pid; do _end_server "$file"; done
    for file in ~/tpm-tutorial/page-*/*/swtpm.pid; do _end_tpm "$file"; done
  fi
}

_end_server() {
  [ -e "$1" ] || return 0
  local process
  process=$(cat "$1")
  # By now the number may be another program's. Ours works in the folder where its number is kept.
  if [ "/proc/$process/cwd" -ef "$(dirname "$1")" ] && kill "$process"; then
    timeout 30 tail --pid="$process" -s 0.1 -f /dev/null || echo "process $process does not end: kill -9 $process" >&2
  fi
  rm "$1"
}

_end_tpm() {
  [ ! -e "$1" ] || tpm-mtls simulator stop --dir "$(dirname "$1")" > /dev/null
}

_go_to_page() {
  local checkout before='' folder=page-$1 file
  checkout=$(realpath "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/../..")
  if [ -x "$checkout/.venv/bin/tpm-mtls" ]; then
    [[ $PATH == "$checkout/.venv/bin":* ]] || PATH=$checkout/.venv/bin:$PATH
  elif ! command -v tpm-mtls > /dev/null; then
    echo "tpm-mtls is not installed: ./run setup in $checkout" >&2
    return 1
  fi
  cd ~/tpm-tutorial || return
  unset OPENSSL_CONF OPENSSL_MODULES TPM2OPENSSL_TCTI TPM2TOOLS_TCTI TPM_MTLS_TCTI TPM_MTLS_SOCKET
  for file in page-*/*.pid; do _end_server "$file"; done
  for file in page-*/*/swtpm.pid; do
    [[ $file == "$folder"/* && ${2:-} != again ]] || _end_tpm "$file"
  done
  case $1 in
    [1237]) ;;
    [456]) before=page-$(($1 - 1)) ;;
    8 | 9 | 1[0-4]) before=page-7 ;;
    *)
      echo "which page? . ~/tpm-tutorial/page.sh 8" >&2
      return 2
      ;;
  esac
  [ "${2:-}" != again ] || rm -rf "$folder"
  if [ -n "$before" ] && [ ! -e "$folder" ]; then
    if [ ! -e "$before" ]; then
      echo "page $1 builds on page ${before#page-}: follow that first" >&2
      return 1
    fi
    rm -rf copy && cp -a "$before" copy && mv copy "$folder" # a copy that was interrupted is none
    touch "$folder/.copied"
  elif [ -n "$before" ] && [ -n "$(find "$before" -newer "$folder/.copied" -type f ! -name .copied -print -quit)" ]; then
    echo "page ${before#page-} was worked on after page $1 began with a copy of it; to take that over: . ~/tpm-tutorial/page.sh $1 again"
  fi
  mkdir -p "$folder" && cd "$folder" || return
}

[ -n "${BASH_VERSION:-}" ] || echo "the tutorial is for bash: type bash first" >&2
_go_to_page "$@"
