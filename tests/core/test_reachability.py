"""libtss2 has one code for every reason why a TPM cannot be opened; the error says which it is."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tpm_mtls.errors import TpmLockoutError, TpmMtlsError, TpmUnavailableError, TpmVersionError
from tpm_mtls.reachability import with_reason

OPEN = Path("/proc/self/fd")
IO_ERROR = "no TPM answers (response code 0xa000a)"


def explained(tcti: str, number: int = 0) -> TpmMtlsError:
    def open_node(path: str, flags: int) -> int:
        assert path == tcti.rpartition(":")[2]
        assert flags & os.O_ACCMODE == os.O_RDWR
        assert flags & os.O_NONBLOCK
        if number:
            raise OSError(number, os.strerror(number))
        return os.open("/dev/null", flags)

    return with_reason(TpmUnavailableError(IO_ERROR, hint="is it there", tcti=tcti), open_node=open_node)


@pytest.mark.parametrize(
    ("tcti", "number", "reason", "hint"),
    [
        ("device:/dev/tpm0", errno.EBUSY, "/dev/tpm0 is in use, and admits one program", "device:/dev/tpmrm0"),
        ("pcap:device:/dev/tpm7", errno.EBUSY, "/dev/tpm7 is in use, and admits one program", "device:/dev/tpmrm7"),
        ("device:/dev/{0}", errno.EBUSY, "/dev/{0} is in use", "names who holds it"),
        ("device:/dev/other", errno.EBUSY, "/dev/other is in use", "as root, names who holds it"),
        ("device:/dev/tpmrm0", errno.ENODEV, "/dev/tpmrm0 has no driver behind it any more", "dmesg"),
        ("device:/dev/tpmrm0", errno.ENXIO, "/dev/tpmrm0 has no driver behind it", "dmesg"),
        ("device:/dev/tpmrm0", errno.EPERM, "kept from this program by a sandbox", "DeviceAllow=/dev/tpmrm0 rw"),
        ("device:/dev/tpmrm0", errno.EIO, "/dev/tpmrm0 cannot be opened, input/output error", "dmesg"),
    ],
)
def test_what_open_says_is_told(tcti: str, number: int, reason: str, hint: str) -> None:
    error = explained(tcti, number)
    assert str(error).startswith(f"{IO_ERROR}: ")
    assert reason in str(error)
    assert hint in error.hint
    assert isinstance(error, TpmUnavailableError)
    assert error.tcti == tcti


@pytest.mark.parametrize("host", ["nowhere.invalid", "a" * 64 + ".example"])
def test_a_simulator_whose_name_does_not_resolve_is_told(host: str) -> None:
    for tcti in (f"swtpm:host={host},port=2321", f"mssim:port=1,host={host}"):
        error = explained(tcti)
        assert str(error) == f"{IO_ERROR}: the name {host} does not resolve"
        assert "spelled right" in error.hint


@pytest.mark.parametrize("tcti", ["device:/dev/tpm0", "swtpm:host=127.0.0.1,port=1", "swtpm:port=1", "cmd:false"])
def test_where_nothing_is_to_be_seen_the_error_stays_as_it_is(tcti: str) -> None:
    before = len(list(OPEN.iterdir()))
    error = explained(tcti)
    assert (str(error), error.hint) == (IO_ERROR, "is it there")
    assert len(list(OPEN.iterdir())) == before


def test_errors_that_know_more_stay_as_they_are() -> None:
    for error in (
        TpmVersionError("a TPM 1.2", hint="-", tcti="swtpm:host=nowhere.invalid"),
        TpmLockoutError("locked", hint="-", rc=0x921),
    ):
        assert with_reason(error) is error


@pytest.mark.parametrize(
    "opening",
    [
        "from tpm_mtls.tpm import open_tpm\nwith open_tpm(where): pass",
        "from tpm_mtls.openssl.provider import connect\nconnect(where)",
    ],
)
def test_by_pytss_and_by_the_provider_alike(opening: str) -> None:
    """A device without driver: a process without terminal opens /dev/tty."""
    body = opening.replace("where", "'device:/dev/tty'").replace("\n", "\n    ")
    code = f"from tpm_mtls.errors import TpmUnavailableError\ntry:\n    {body}\n"
    code += "except TpmUnavailableError as error:\n    print(error, '|', error.hint, '|', error.__cause__ is error)\n"
    program = [sys.executable, "-c", code]
    done = subprocess.run(program, capture_output=True, text=True, check=True, start_new_session=True)
    assert done.stdout.startswith(
        "no TPM answers at device:/dev/tty (response code 0xa000a): /dev/tty has no driver behind it | what does"
    ), done.stderr
    assert done.stdout.endswith("| False\n")
