"""Where the TPM is: the option, then the environment, then the kernel's resource manager."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from support.processes import run_crippled
from tpm_mtls.errors import TctiInvalidError, TpmUnavailableError, TpmVersionError
from tpm_mtls.tcti import DEFAULT_TCTI, resolve_tcti

if TYPE_CHECKING:
    from pathlib import Path


def test_the_option_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TPM_MTLS_TCTI", "swtpm:port=1")
    assert resolve_tcti("swtpm:port=2") == "swtpm:port=2"
    assert resolve_tcti(None) == "swtpm:port=1"


@pytest.mark.parametrize("tcti", ["nonsense", "swtmp:port=1", "swtpm:port=1\nx", ":", "/dev/tpm0"])
def test_an_unknown_transport_is_refused_with_examples(tcti: str) -> None:
    with pytest.raises(TctiInvalidError, match="not a TCTI string") as caught:
        resolve_tcti(tcti)
    assert DEFAULT_TCTI in caught.value.hint
    assert caught.value.tcti == tcti


def test_a_missing_device_says_how_to_go_on(tmp_path: Path) -> None:
    with pytest.raises(TpmUnavailableError, match=r"there is no TPM at .*tpm9") as caught:
        resolve_tcti(f"device:{tmp_path}/tpm9")
    assert "simulator start" in caught.value.hint


def test_a_device_file_that_is_there_is_taken(tmp_path: Path) -> None:
    (tmp_path / "tpm9").symlink_to("/dev/null")
    assert resolve_tcti(f"device:{tmp_path}/tpm9") == f"device:{tmp_path}/tpm9"


def test_a_file_that_is_no_device_is_refused_before_a_command_is_written_into_it(tmp_path: Path) -> None:
    (tmp_path / "tpm9").touch()
    with pytest.raises(TpmUnavailableError, match=r"tpm9 is no device"):
        resolve_tcti(f"device:{tmp_path}/tpm9")
    with pytest.raises(TctiInvalidError) as caught:
        resolve_tcti("/dev/tpm0")
    assert caught.value.hint.startswith("did you mean device:/dev/tpm0?")


@pytest.mark.parametrize("tcti", ["device", "device:"])
def test_no_device_in_particular_is_the_resource_manager_as_in_libtss2(tcti: str) -> None:
    try:
        resolved = resolve_tcti(tcti)
    except TpmUnavailableError as error:  # where no TPM is
        resolved = error.tcti
    assert resolved == DEFAULT_TCTI


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("tpmrm9", "run it as root or as a member of the group tss"),
        ("tpm9", "run it as root or, as a member of the group tss, with --tcti device:{folder}/tpmrm9"),
    ],
)
def test_a_device_that_this_user_may_not_open_says_who_may(tmp_path: Path, name: str, hint: str) -> None:
    device = tmp_path / name
    device.touch()
    device.chmod(0)
    for parent in tmp_path.parents:
        if parent.stat().st_uid == os.geteuid() and str(parent) != "/":
            parent.chmod(parent.stat().st_mode | 0o011)
    tmp_path.chmod(0o755)
    code = (
        "import os, sys; from tpm_mtls.tcti import resolve_tcti; from tpm_mtls.errors import TpmUnavailableError\n"
        "if os.geteuid() == 0: os.setuid(65534)\n"
        "try: resolve_tcti(sys.argv[1])\n"
        "except TpmUnavailableError as error: sys.exit(str(error) + '; ' + error.hint)\n"
    )
    said = run_crippled(code, f"device:{device}")
    assert said == f"this user may not open {device}; {hint.format(folder=tmp_path)}"


def test_a_tpm_1_2_is_recognised_by_what_the_kernel_says(tmp_path: Path) -> None:
    (tmp_path / "tpmrm9").symlink_to("/dev/null")
    (tmp_path / "sys" / "tpm9").mkdir(parents=True)
    (tmp_path / "sys" / "tpm9" / "tpm_version_major").write_text("1\n")
    with pytest.raises(TpmVersionError, match=r"is a TPM 1\.2"):
        resolve_tcti(f"device:{tmp_path}/tpmrm9", kernel=tmp_path / "sys")
    (tmp_path / "sys" / "tpm9" / "tpm_version_major").write_text("2\n")
    assert resolve_tcti(f"device:{tmp_path}/tpmrm9", kernel=tmp_path / "sys")


def test_a_tpm_1_2_is_recognised_without_a_resource_manager_which_the_kernel_gives_none(tmp_path: Path) -> None:
    (tmp_path / "tpm9").mkdir()
    (tmp_path / "tpm9" / "tpm_version_major").write_text("1\n")
    with pytest.raises(TpmVersionError, match=r"tpmrm9 is a TPM 1\.2"):
        resolve_tcti(f"device:{tmp_path}/tpmrm9", kernel=tmp_path)
