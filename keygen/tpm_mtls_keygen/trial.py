"""A new key and its certificate on trial: only what worked once in TLS with the CA takes the place of the old.

For the trial the key is a key file under the storage root key, whatever it is to become, and lies with its certificate
beside the old ones. The CA takes part, because it accepts the old key now and must accept the new one next time.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from tpm_mtls.errors import TpmMtlsError
from tpm_mtls.files import PRIVATE_FILE, remove_file, write_atomic
from tpm_mtls.identity import TRUST, Identity
from tpm_mtls.key_reference import KeyFile
from tpm_mtls_keygen.first_boot_folder import TRIAL_CERTIFICATE, TRIAL_KEY
from tpm_mtls_keygen.patience import Later

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime
    from pathlib import Path

    from tpm_mtls_keygen.est_client import EstExchange


@contextmanager
def on_trial(folder: Path, key: bytes, certificates: bytes) -> Iterator[Identity]:
    """The identity with the new key (a PEM file's content) and its chain, in ``folder`` for the time of the block.

    What a killed run leaves of it, `tpm_mtls_keygen.first_boot_folder.remove_leftovers` removes.

    Raises:
        StorageError: a file cannot be written or removed.
    """
    key_file, certificate_file = folder / TRIAL_KEY, folder / TRIAL_CERTIFICATE
    try:
        write_atomic(key_file, key, mode=PRIVATE_FILE)
        write_atomic(certificate_file, certificates)
        yield Identity(KeyFile(key_file), certificate_file, folder / TRUST)
    finally:
        for path in (key_file, certificate_file):
            remove_file(path)


def attempt(est: EstExchange, *, now: datetime) -> bool | Later:
    """One TLS handshake with the CA, by ``est`` as the identity on trial, and an answer over it; true if it worked.

    An answer in TLS 1.3 means that the CA has verified signature and certificate: both come before it. A server that
    asks for no client certificate would prove nothing; but then it could not renew any.

    Raises:
        TpmMtlsError: as `EstExchange.ca_certificates`, and as `tpm_mtls.tls.client_context` for the key on trial.
    """
    try:
        answer = est.ca_certificates(now=now)
    except TpmMtlsError as error:
        error.hint = f"the old key stays in use; {error.hint}"
        raise
    return answer if isinstance(answer, Later) else True
