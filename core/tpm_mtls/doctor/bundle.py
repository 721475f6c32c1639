"""What the doctor saw, in one file for whoever helps. No key, no authorization value and no token gets into it.

Nothing is copied: each file is written anew from what was read by name, so that nothing comes along unseen.
"""

from __future__ import annotations

import importlib.metadata
import io
import json
import os
import platform
import re
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from tpm_mtls.certificates import certificates_pem, load_certificates
from tpm_mtls.configuration import FILE_VARIABLE, RELAY_VARIABLE, load_configuration
from tpm_mtls.doctor.presentation import as_data, as_text
from tpm_mtls.errors import TpmMtlsError
from tpm_mtls.files import PRIVATE_FILE, write_atomic
from tpm_mtls.identity import CERTIFICATE, TRUST
from tpm_mtls.tcti import ENVIRONMENT

if TYPE_CHECKING:
    from datetime import datetime

    from tpm_mtls.doctor.diagnosis import Diagnosis

FOLDER: Final = "tpm-mtls-doctor"
"""The folder in the archive."""

_PACKAGES: Final = ("tpm-mtls", "tpm2-pytss", "cryptography", "pyOpenSSL", "msgspec", "click", "urllib3", "aiohttp")
_VARIABLES: Final = (ENVIRONMENT, FILE_VARIABLE, RELAY_VARIABLE, "OPENSSL_CONF", "OPENSSL_MODULES", "TPM2OPENSSL_TCTI")
_PROGRAM: Final = re.compile(r"\bcmd:.*", re.DOTALL)  # a TCTI that starts a program may have anything in its arguments

_README: Final = """\
What tpm-mtls doctor saw of a device, for whoever helps its owner.

doctor.txt, doctor.json   what is wrong, and what to do about it
facts.json                what that was concluded from
system.json               kernel, packages, environment, configuration
*.pem                     the device's certificate and its trust anchor

There is no private key, no authorization value and no token in it. It names the device and its TPM for good.
"""


def write_bundle(path: Path, diagnosis: Diagnosis, *, now: datetime) -> None:
    """Writes ``path``, a tar.gz that only its owner may read.

    Raises:
        StateError: something is there already.
        StorageError: it cannot be written.
    """
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        for name, content in _contents(diagnosis).items():
            entry = tarfile.TarInfo(f"{FOLDER}/{name}")
            entry.size, entry.mode, entry.mtime = len(content), PRIVATE_FILE, int(now.timestamp())
            tar.addfile(entry, io.BytesIO(content))
    write_atomic(path, archive.getvalue(), mode=PRIVATE_FILE, replace=False)


def _contents(diagnosis: Diagnosis) -> dict[str, bytes]:
    clean = _clean(msgspec.to_builtins(diagnosis))
    facts = {name: value for name, value in clean.items() if name != "findings"}
    said = msgspec.convert(clean, type(diagnosis))
    contents = {
        "README.txt": _README.encode(),
        "doctor.txt": (as_text(said) + "\n").encode(),
        "doctor.json": _json(as_data(said)),
        "facts.json": _json(facts),
        "system.json": _json(_clean(_system())),
    }
    for name in (CERTIFICATE, TRUST):
        certificates = _certificates(diagnosis, name)
        if certificates:
            contents[name] = certificates
    return contents


def _system() -> dict[str, Any]:
    return {
        "kernel": f"{platform.system()} {platform.release()} {platform.machine()}",
        "system": _system_name(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "environment": {name: os.environ[name] for name in _VARIABLES if name in os.environ},
        "configuration": _configuration(),
    }


def _system_name() -> str:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME", "")
    except OSError:  # an image without the file
        return ""


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _configuration() -> dict[str, str | None]:
    try:
        found = load_configuration()
    except TpmMtlsError as error:
        return {"error": str(error)}
    return {"relay": found.relay, "tcti": found.tcti, "latency_model": found.latency_model}


def _certificates(diagnosis: Diagnosis, name: str) -> bytes:
    """The certificates of a file of the identity folder, written anew: what else is in it stays there."""
    try:
        return certificates_pem(load_certificates(Path(diagnosis.identity.folder) / name))
    except TpmMtlsError:
        return b""  # the findings say why


def _json(data: Any) -> bytes:  # noqa: ANN401 - JSON
    return json.dumps(data, indent=2, ensure_ascii=False).encode() + b"\n"


def _clean(data: Any) -> Any:  # noqa: ANN401 - JSON
    """``data`` without what programs are given, be it on several lines."""
    if isinstance(data, dict):
        return {key: _clean(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_clean(value) for value in data]
    return _PROGRAM.sub("cmd:…", data) if isinstance(data, str) else data
