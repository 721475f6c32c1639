"""What a key or a persistent object is, in words: for ``keygen show`` and ``keygen list``."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key

from tpm_mtls.errors import CredentialError, HandleNotFoundError, StorageError
from tpm_mtls.key_reference import PersistentHandle
from tpm_mtls.policy.files import find_policy
from tpm_mtls.policy.words import in_words
from tpm_mtls.structures import Attribute, PublicArea, qualified_name
from tpm_mtls.tpm import SRK_HANDLE
from tpm_mtls.tpm.tls_key import read_key_file
from tpm_mtls_keygen.evidence import read_endorsement
from tpm_mtls_keygen.issued import parse_certificate
from tpm_mtls_keygen.keys import FIRST_HANDLE, LAST_HANDLE

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from typing import Any

    from tpm_mtls.tpm import PersistentObject, Tpm

_HIERARCHIES = {
    0x40000001: "owner hierarchy",
    0x40000007: "null hierarchy",
    0x4000000B: "endorsement hierarchy",
    0x4000000C: "platform hierarchy",
}
_ENDORSEMENT_HANDLES = range(0x81010000, 0x81020000)  # Registry of Reserved TPM 2.0 Handles, table 2


@dataclass(frozen=True)
class KeyDescription:
    """A key or another object of a TPM; what is not known is none.

    Attributes:
        key: key reference: ``handle:0x…``, or the file's path.
        role: such as ``TLS key``, ``storage root key``, ``endorsement key``.
        algorithm: such as ``ecc-p256``.
        scheme: signing scheme that it is bound to, ``null`` for any.
        parent: handle of the parent key or hierarchy, such as ``0x81000001``. For a persistent key it is computed from
            the qualified names, and none if the parent is not persistent.
        attributes: TPMA_OBJECT in the specification's words.
        name: the Name, hex.
        policy: the authorization policy's digest, hex; empty for none.
        must_hold: the policy in words; none where there is no policy, or nothing to read it from.
        empty_auth: whether it has no authorization value; a TPM does not tell.
        born_inside: whether its attributes say that the private key was made in this TPM and cannot leave it.
        public_key: SubjectPublicKeyInfo, PEM; none for what is no asymmetric key.
        description: what its maker wrote into the file.
    """

    key: str
    role: str
    algorithm: str
    scheme: str
    parent: str | None
    attributes: tuple[str, ...]
    name: str
    policy: str
    empty_auth: bool | None
    born_inside: bool
    public_key: str | None
    description: str | None = None
    must_hold: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        return asdict(self)


def describe_file(path: Path, *, beside: Path | None = None) -> KeyDescription:
    """The key in a ``TSS2 PRIVATE KEY`` file, as the file says; no TPM is asked, so nothing proves it.

    Its policy is looked for in its own folder, and in ``beside``.

    Raises:
        CredentialError: it is a software key.
        PemError: it holds no complete key.
        StorageError: it cannot be read.
    """
    key = read_key_file(path)
    return _describe(
        str(path),
        key.public,
        role=_role(key.public),
        parent=f"{key.parent:#010x}",
        empty_auth=key.empty_auth,
        description=key.description,
        policies=[path.absolute().parent, *([beside] if beside else [])],
    )


def describe_handle(tpm: Tpm, handle: int, *, beside: Path | None = None) -> KeyDescription:
    """The object at the persistent ``handle`` (two commands: its parent may be the storage root key).

    Its policy is looked for in ``beside``.

    Raises:
        HandleNotFoundError: nothing is there.
    """
    found = tpm.read_public(handle)
    try:
        candidates = [] if handle == SRK_HANDLE else [tpm.read_public(SRK_HANDLE)]
    except HandleNotFoundError:
        candidates = []
    return _describe_object(found, candidates, policies=[beside] if beside else [])


def describe_endorsement(tpm: Tpm) -> dict[str, Any]:
    """The endorsement key by which a CA knows this TPM; nothing about it is verified.

    ``ek_hash`` (SHA-256 of its public key, hex: what an allow-list takes), ``template`` (by its name in the TCG's
    profile), ``algorithm``, ``public_key`` (PEM), and of its certificate, none where there is none: ``certificate``
    (PEM), ``issuer`` and ``not_after``.

    Raises:
        EvidenceError: certificate or template in the TPM are damaged, or do not belong together.
    """
    found = read_endorsement(tpm)
    certificate = parse_certificate(found.certificate) if found.certificate is not None else None
    return {
        "ek_hash": found.hash,
        "template": found.template.value,
        "algorithm": found.public.algorithm,
        "public_key": _pem(found.public),
        "certificate": certificate.public_bytes(Encoding.PEM).decode() if certificate else None,
        "issuer": certificate.issuer.rfc4514_string() if certificate else None,
        "not_after": certificate.not_valid_after_utc.isoformat() if certificate else None,
    }


def list_objects(tpm: Tpm, *, beside: Path | None = None) -> list[KeyDescription]:
    """All persistent objects, of every hierarchy (one command, and one for each object); policies are in ``beside``."""
    found = [tpm.read_public(handle) for handle in tpm.persistent_handles()]
    return [_describe_object(each, found, policies=[beside] if beside else []) for each in found]


def _describe_object(
    found: PersistentObject, candidates: list[PersistentObject], *, policies: Sequence[Path] = ()
) -> KeyDescription:
    return _describe(
        str(PersistentHandle(found.handle)),
        found.public,
        role=_role(found.public, found.handle),
        parent=_parent(found, candidates),
        empty_auth=None,
        policies=policies,
    )


def _describe(
    key: str,
    public: PublicArea,
    *,
    role: str,
    parent: str | None,
    empty_auth: bool | None,
    description: str | None = None,
    policies: Sequence[Path] = (),
) -> KeyDescription:
    return KeyDescription(
        key=key,
        role=role,
        algorithm=public.algorithm,
        scheme=public.scheme,
        parent=parent,
        attributes=public.attribute_words,
        name=public.name.hex(),
        policy=public.policy.hex(),
        empty_auth=empty_auth,
        born_inside=public.was_born_inside,
        public_key=_pem(public),
        description=description,
        must_hold=_must_hold(public, policies),
    )


def _must_hold(public: PublicArea, policies: Sequence[Path]) -> str | None:
    try:
        document = find_policy(public.name, policies) if public.policy else None
    except (CredentialError, StorageError) as error:
        return f"unknown: {error}"
    return in_words(document.policy) if document else None


def _role(public: PublicArea, handle: int | None = None) -> str:
    has = public.attributes.__contains__
    in_owner_range = handle is None or FIRST_HANDLE <= handle <= LAST_HANDLE
    roles = {
        "storage root key": handle == SRK_HANDLE and public.is_storage_key,
        "endorsement key": handle in _ENDORSEMENT_HANDLES and public.is_storage_key,
        "storage key": public.is_storage_key,
        "TLS key": public.is_signing_key and in_owner_range,
        "signing key": public.is_signing_key,
        "attestation key": public.spki is not None and has(Attribute.RESTRICTED | Attribute.SIGN),
        "sealed data": public.algorithm == "keyedhash" and not (has(Attribute.SIGN) or has(Attribute.DECRYPT)),
    }
    return next((role for role, fits in roles.items() if fits), "other")


def _parent(found: PersistentObject, candidates: list[PersistentObject]) -> str | None:
    for hierarchy in _HIERARCHIES:
        if qualified_name(hierarchy.to_bytes(4, "big"), found.public) == found.qualified_name:
            return f"{hierarchy:#010x}"
    for candidate in candidates:
        if qualified_name(candidate.qualified_name, found.public) == found.qualified_name:
            return f"{candidate.handle:#010x}"
    return None


def _pem(public: PublicArea) -> str | None:
    if public.spki is None:
        return None
    key = load_der_public_key(public.spki)
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def as_text(key: KeyDescription) -> str:
    """``key`` for a person: one fact a line, then the public key in PEM."""
    from_tpm = key.empty_auth is None
    needed = {None: "the TPM does not tell", True: "not needed", False: "needed (--auth)"}[key.empty_auth]
    lines = {
        "key": key.key,
        "role": key.role,
        "algorithm": key.algorithm if key.scheme == "null" else f"{key.algorithm}, {key.scheme} only",
        "parent": _parent_text(key.parent),
        "attributes": ", ".join(key.attributes),
        "origin": _origin(key, says="" if from_tpm else ", says the file"),
        "name": key.name,
        "authorization": needed,
        "policy": key.policy or "none",
        "must hold": key.must_hold,
        "description": key.description,
    }
    facts = "\n".join(f"{what:<14}{value}" for what, value in lines.items() if value is not None)
    return facts if key.public_key is None else f"{facts}\n{key.public_key.rstrip()}"


def _parent_text(parent: str | None) -> str:
    if parent is None:
        return "none that is persistent"
    known = {**_HIERARCHIES, SRK_HANDLE: "storage root key"}.get(int(parent, 16))
    return f"{parent} ({known})" if known else parent


def _origin(key: KeyDescription, *, says: str) -> str:
    if key.born_inside:
        return f"made inside the TPM, and can never leave it{says}"
    if "fixedTPM" not in key.attributes:
        return f"IMPORTED: it existed outside the TPM, other copies may exist{says}"
    return f"not made inside the TPM{says}"
