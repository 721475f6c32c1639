"""Every error that the project raises on purpose.

    TpmMtlsError                        exit code
     ├─ UsageError                           2    an option or argument is wrong
     ├─ TpmUnavailableError                  3    no usable TPM answers
     │   ├─ TctiInvalidError                      the TCTI string is wrong
     │   └─ TpmVersionError                       it is a TPM 1.2
     ├─ TpmRefusedError                      4    the TPM answered with a response code
     │   ├─ TpmMemoryError                        object, session or NV space is exhausted
     │   ├─ TpmLockoutError                       dictionary-attack lockout
     │   ├─ AuthorizationError                    wrong or missing authorization value
     │   ├─ ForeignKeyError                       the key belongs to another TPM (or the TPM was cleared)
     │   ├─ KeyGoneError                          the key was loaded, then the TPM restarted
     │   ├─ HandleNotFoundError                   nothing at that handle
     │   ├─ PolicyRefusedError                    the key's policy is not satisfied: the machine booted something else
     │   └─ AlgorithmUnsupportedError             this TPM does not have that algorithm
     ├─ CredentialError                      5    a key, certificate, CSR or CRL is unusable
     │   ├─ KeyReferenceError                     it names no key
     │   ├─ PemError                              truncated, oversized or not what was expected
     │   ├─ PolicyError                           a key's policy is missing, damaged, wrongly signed or another key's
     │   ├─ CertificateMismatchError              the certificate belongs to another key
     │   ├─ CertificateExpiredError
     │   ├─ CertificateNotYetValidError
     │   ├─ CsrRefusedError                       malformed, wrong signature, unacceptable key
     │   └─ EvidenceError                         attestation data is malformed or does not verify
     │       └─ EvidenceRefusedError              it failed one of the numbered checks
     ├─ PeerError                            6    the other side of a connection
     │   ├─ PeerUnreachableError
     │   ├─ PeerUntrustedError                    its chain or its name does not verify
     │   ├─ HandshakeError                        TLS failed, or the peer refused our certificate
     │   └─ ResponseError                         its answer is malformed, cut off or too large
     ├─ RequestRefusedError                  7    the peer answered, with an HTTP error status
     │   └─ TokenRefusedError                     the bootstrap token is wrong, used or expired
     ├─ AgentRefusedError                    7    the device agent answered with an error
     │   └─ AccessDeniedError                     its allow-list does not let this program ask for that
     ├─ StorageError                         8    a file or folder cannot be read or written
     │   └─ StorageFullError
     ├─ OpensslError                         9    this process's OpenSSL cannot do it
     │   ├─ ProviderMissingError
     │   ├─ ProviderTooOldError
     │   └─ OpensslLinkageError                   Python is not linked to the system's OpenSSL
     └─ StateError                          10    what is there already contradicts the request
         ├─ HandleOccupiedError
         ├─ IdentityError                         the identity folder is damaged, incomplete or of another device
         ├─ StorageRootKeyChangedError            the TPM was cleared or exchanged: what it kept is lost
         ├─ NoSuchSecretError                     no secret has that name
         └─ SimulatorError                        the simulated TPM does not start, stop or answer

Exit code 0 is success, 1 an error that nobody foresaw, 130 an interrupt. The table is printed by ``tpm-mtls --help``.

Every error says what happened (``str(error)``: lower case, no full stop), what to do (``hint``), and carries the facts
it was built from as attributes. The command line prints ``tpm-mtls: error: …`` and ``tpm-mtls: hint: …``.
"""

from __future__ import annotations

from typing import ClassVar


class TpmMtlsError(Exception):
    """Parent of all; ``hint`` is what the user can do about it.

    Attributes:
        exit_code: exit status of the command line for this class.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str) -> None:
        super().__init__(message)
        self.hint = hint

    @property
    def hint(self) -> str:
        """One line of advice; never empty. Python's tracebacks show it as a note (PEP 678)."""
        return self._hint

    @hint.setter
    def hint(self, advice: str) -> None:
        self._hint = advice
        self.__notes__ = [f"hint: {advice}"]


class UsageError(TpmMtlsError):
    """An option or argument is wrong."""

    exit_code = 2


class TpmUnavailableError(TpmMtlsError):
    """No usable TPM answers at ``tcti``."""

    exit_code = 3

    def __init__(self, message: str, *, hint: str, tcti: str) -> None:
        super().__init__(message, hint=hint)
        self.tcti = tcti


class TctiInvalidError(TpmUnavailableError):
    """The TCTI string is wrong."""


class TpmVersionError(TpmUnavailableError):
    """The chip is a TPM 1.2."""


class TpmRefusedError(TpmMtlsError):
    """The TPM answered ``rc`` (TPM 2.0 Library part 2, 6.6; or a TSS2 layer's code)."""

    exit_code = 4

    def __init__(self, message: str, *, hint: str, rc: int) -> None:
        super().__init__(message, hint=hint)
        self.rc = rc


class TpmMemoryError(TpmRefusedError):
    """The TPM has no room left for an object, a session or an NV entry."""


class TpmLockoutError(TpmRefusedError):
    """The TPM is in dictionary-attack lockout."""


class AuthorizationError(TpmRefusedError):
    """A wrong or missing authorization value."""


class ForeignKeyError(TpmRefusedError):
    """The key belongs to another TPM, or this TPM was cleared since."""


class KeyGoneError(TpmRefusedError):
    """The key was loaded, and then the TPM restarted."""


class HandleNotFoundError(TpmRefusedError):
    """The TPM has nothing at that handle."""


class PolicyRefusedError(TpmRefusedError):
    """The key's policy is not satisfied: the machine booted something else, or a signed policy is outdated."""


class AlgorithmUnsupportedError(TpmRefusedError):
    """This TPM does not have that algorithm, curve or key size."""


class CredentialError(TpmMtlsError):
    """A key, certificate, CSR or CRL is unusable."""

    exit_code = 5


class KeyReferenceError(CredentialError):
    """The key reference names no key."""


class PemError(CredentialError):
    """A PEM or DER input is truncated, oversized or not what was expected."""


class PolicyError(CredentialError):
    """A key's policy file is missing, damaged, wrongly signed or does not yield the key's policy."""


class CertificateMismatchError(CredentialError):
    """The certificate belongs to another key."""


class CertificateExpiredError(CredentialError):
    """The certificate's validity has ended."""


class CertificateNotYetValidError(CredentialError):
    """The certificate's validity has not begun; often the clock is wrong."""


class CsrRefusedError(CredentialError):
    """A certificate request is malformed, wrongly signed or asks with an unacceptable key."""


class EvidenceError(CredentialError):
    """What a TPM is said to have attested is malformed, contradicts itself or does not verify."""


class EvidenceRefusedError(EvidenceError):
    """The evidence failed ``check``, 1 to 9.

    Enrollment's are in `tpm_mtls.evidence_checks`, attestation's in `tpm_mtls.attestation.quote_checks`.
    """

    def __init__(self, message: str, *, hint: str, check: int) -> None:
        super().__init__(message, hint=hint)
        self.check = check


class PeerError(TpmMtlsError):
    """Something about the other side of a connection to ``host``."""

    exit_code = 6

    def __init__(self, message: str, *, hint: str, host: str) -> None:
        super().__init__(message, hint=hint)
        self.host = host


class PeerUnreachableError(PeerError):
    """Nobody answers, or not in time."""


class PeerUntrustedError(PeerError):
    """The peer's certificate chain or name does not verify."""


class HandshakeError(PeerError):
    """TLS failed, or the peer refused our certificate."""


class ResponseError(PeerError):
    """The peer's answer is malformed, cut off or too large."""


class RequestRefusedError(TpmMtlsError):
    """The peer answered with HTTP ``status``."""

    exit_code = 7

    def __init__(self, message: str, *, hint: str, status: int) -> None:
        super().__init__(message, hint=hint)
        self.status = status


class TokenRefusedError(RequestRefusedError):
    """The bootstrap token is wrong, used or expired."""


class AgentRefusedError(TpmMtlsError):
    """The device agent answered with an error; ``rc`` is the TPM's code, 0 where no TPM was asked."""

    exit_code = 7

    def __init__(self, message: str, *, hint: str, rc: int = 0) -> None:
        super().__init__(message, hint=hint)
        self.rc = rc


class AccessDeniedError(AgentRefusedError):
    """The agent's allow-list does not let this program do that with that name."""


class StorageError(TpmMtlsError):
    """A file or folder cannot be read or written."""

    exit_code = 8

    def __init__(self, message: str, *, hint: str, path: str) -> None:
        super().__init__(message, hint=hint)
        self.path = path


class StorageFullError(StorageError):
    """The disk, the quota or the file-size limit is exhausted."""


class OpensslError(TpmMtlsError):
    """This process's OpenSSL cannot do what is needed."""

    exit_code = 9


class ProviderMissingError(OpensslError):
    """OpenSSL's tpm2 provider is not installed where OpenSSL looks."""


class ProviderTooOldError(OpensslError):
    """The tpm2 provider is older than what TLS client authentication needs."""


class OpensslLinkageError(OpensslError):
    """Python's ``_ssl`` is not linked to the shared OpenSSL that ctypes reaches."""


class StateError(TpmMtlsError):
    """What is there already contradicts the request."""

    exit_code = 10


class HandleOccupiedError(StateError):
    """Something else sits at the persistent handle or NV index ``handle``."""

    def __init__(self, message: str, *, hint: str, handle: int) -> None:
        super().__init__(message, hint=hint)
        self.handle = handle


class IdentityError(StateError):
    """The identity folder is damaged, incomplete or belongs to another device."""


class NoSuchSecretError(StateError):
    """No secret has that name; neither the message nor the hint says the name, which is a credential."""


class StorageRootKeyChangedError(StateError):
    """The storage root key is not the one that it was: Name ``expected``, now ``found`` (none where there is none).

    The TPM was cleared or exchanged, or somebody between here and the TPM answers in its place.
    """

    def __init__(self, *, expected: bytes, found: bytes | None) -> None:
        now = f"it is {found.hex()} now" if found else "there is none now"
        super().__init__(
            f"the TPM's storage root key is not {expected.hex()}: {now}",
            hint=(
                "was the TPM cleared or exchanged? what the old key sealed is lost; keep the files until you know"
                if found
                else "if it was only removed, tpm-mtls provision makes the same one again; was the TPM cleared or "
                "exchanged? then what it sealed is lost; keep the files until you know"
            ),
        )
        self.expected = expected
        self.found = found


class SimulatorError(StateError):
    """The simulated TPM does not start, stop or answer."""
