"""The how-tos' commands, run as they stand in the text."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from support.tpm import SimulatedTpm

FOLDER = Path(__file__).parents[2] / "docs" / "how-to"
_STATUS = re.compile(r"^(?P<command>.*\S)\s+# exit status (?P<status>\d+)$", re.MULTILINE)

# no resource manager: what tpm2-tools leave in the TPM would fill its three slots; sbin has cryptsetup
_PRELUDE = r"""
set -euo pipefail
tpm-mtls() {
  case $1 in
    seal | unseal | pcr | provision) command tpm-mtls "$@" --state-dir "$STATE" ;;
    server) command tpm-mtls "$@" --database "$DATABASE" ;;
    *) command tpm-mtls "$@" ;;
  esac
}
for tool in tpm2_{createprimary,createek,createak,pcrread,createpolicy,create,load,unseal}; do
  eval "$tool() { command $tool \"\$@\"; command tpm2_flushcontext -t; command tpm2_flushcontext -l; }"
done
ends_with() {
  local status=0
  "${@:2}" || status=$?
  [ "$status" = "$1" ] || { printf 'ended with %s: %s\n' "$status" "${*:2}" >&2; exit 99; }
}
"""


class HowTo:
    """``docs/how-to/NAME.md``, tried in ``folder`` with ``tpm``.

    Attributes:
        text: the whole text.
        folder: where its commands run.
    """

    def __init__(self, name: str, tpm: SimulatedTpm, folder: Path, instead: Mapping[str, str] | None = None) -> None:
        """``instead`` says what takes the place of words in the commands: devices that a test does not have."""
        self.text = (FOLDER / f"{name}.md").read_text()
        self.folder = folder
        self._instead = instead or {}
        # not measured by coverage: each of many short programs would take twice as long
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(("OPENSSL_", "COVERAGE_"))}
        self._environment = inherited | {
            "TPM_MTLS_TCTI": tpm.tcti,
            "TPM2TOOLS_TCTI": tpm.tcti,
            "STATE": str(folder / "state"),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}:/usr/sbin:/sbin",
        }

    def blocks(self, section: str, language: str = "sh") -> list[str]:
        """The blocks of commands below the heading ``section``."""
        (part,) = [part for part in self.text.split("\n## ") if part.partition("\n")[0] == section]
        found = re.findall(rf"^```{language}\n(.*?)^```$", part, re.DOTALL | re.MULTILINE)
        assert found, section
        return found

    def run(self, script: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Runs one block; a line ends with ``# exit status N`` where it must, all others with 0."""
        for word, other in self._instead.items():
            script = script.replace(word, other)
        script = _STATUS.sub(r"ends_with \g<status> \g<command>", script)
        done = subprocess.run(
            ["bash", "-c", _PRELUDE + script],
            cwd=self.folder,
            env=self._environment | variables,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}"
        return done

    def run_section(self, section: str, **variables: str) -> list[subprocess.CompletedProcess[str]]:
        """Runs all blocks of ``section``."""
        return [self.run(block, **variables) for block in self.blocks(section)]
