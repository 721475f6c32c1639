"""What ``tpm-mtls seal`` and ``unseal`` do: where a sealed secret is, and what must hold for it."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from tpm_mtls.errors import UsageError
from tpm_mtls.files import make_folder, read_capped, refuse_existing, remove_file, write_atomic
from tpm_mtls.policy.digest import policy_digest
from tpm_mtls.policy.document import PolicyDocument
from tpm_mtls.policy.files import find_policy, write_policy
from tpm_mtls.sealed_blob import SealedBlob
from tpm_mtls.structures import Attribute
from tpm_mtls.structures.nv_public import NvAttribute
from tpm_mtls.structures.sealed import SEALED_LIMIT, read_sealed_files
from tpm_mtls.tpm import SRK_HANDLE, open_tpm
from tpm_mtls_agent.sealing.blobs import of_this_tpm, pinned_name, seal_blob, unseal_blob
from tpm_mtls_agent.sealing.nv_secret import nv_public, read_from_nv, seal_into_nv
from tpm_mtls_agent.sealing.policy import SealPolicy, new_policy, remembered_policy, signed_policies

if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from pathlib import Path

    from tpm_mtls.authorization import HierarchyAuthorization, Secret
    from tpm_mtls.policy.document import Assertion
    from tpm_mtls.tpm import Tpm
    from tpm_mtls_agent.sealing.blobs import Parent

NV_POLICIES: Final = "nv-policies"
"""Folder beside the identity for the policies of NV indices. Not in it: there they would be taken for TLS keys'."""

_PART_LIMIT: Final = 4096  # bytes of tpm2-tools' files, which have a few hundred


@dataclass(frozen=True)
class Authorizations:
    """Authorization values; none for an empty one.

    Attributes:
        secret: of the sealed data.
        owner: of the owner hierarchy.
        srk: of the storage root key.
    """

    secret: Secret | None = None
    owner: HierarchyAuthorization | None = None
    srk: Secret | None = None


@dataclass(frozen=True)
class Sealer:
    """Seals and unseals with the TPM at ``tcti``.

    Attributes:
        tcti: where it is; see `tpm_mtls.tcti.resolve_tcti`.
        state_dir: the identity folder: says which storage root key it is.
        authorizations: what has to be known.
        policy: what must hold; to unseal, only what is sealed in a form that does not say it itself.
        signed: files of signed policies, to unseal.
        parent: the key under which another tool sealed it; none for the one that the blob names.
    """

    tcti: str | None
    state_dir: Path
    authorizations: Authorizations
    policy: SealPolicy
    signed: tuple[Path, ...] = ()
    parent: Parent | None = None

    def seal(self, secret: bytes) -> tuple[SealedBlob, int | None]:
        """``secret``, sealed into a blob; and where the counter stands, if its policy has one.

        Raises:
            as `tpm_mtls_agent.sealing.blobs.seal_blob` and `new_policy`.
        """
        with self._open(pinned_name(self.state_dir)) as tpm:
            policy, counter = self._new_policy(tpm)
            blob = seal_blob(tpm, secret, policy=policy, authorization=self.authorizations.secret)
        return blob, counter

    def unseal(self, blob: SealedBlob, name: str, *, beside: Path | None) -> bytes:
        """The secret in ``blob``, which was at ``name``; signed policies may lie ``beside`` it.

        Raises:
            as `tpm_mtls_agent.sealing.blobs.unseal_blob` and `remembered_policy`.
        """
        pinned = pinned_name(self.state_dir)
        ours = of_this_tpm(blob, name) if pinned is None else nullcontext()
        with ours, self._open(pinned or blob.srk) as tpm:
            policy = blob.policy
            if policy and self.policy:
                raise UsageError(f"{name} says its policy itself", hint="leave --pcrs and the other options out")
            if not policy:
                takes_value = Attribute.USERWITHAUTH in blob.sealed.public.attributes
                policy = self._remembered(tpm, blob.sealed.public.policy, name, or_value=takes_value)
            return unseal_blob(
                tpm,
                blob,
                policy=policy,
                signed_policies=signed_policies(policy, self.signed, self._folders(beside)),
                authorization=self.authorizations.secret,
                parent=self.parent,
                name=name,
            )

    def seal_into_nv(self, index: int, secret: bytes) -> tuple[bytes, Path | None, int | None]:
        """Keeps ``secret`` in the NV index ``index``.

        Returns:
            The index's Name, the file with its policy, if it has one, and where the counter stands, if there is one.

        Raises:
            as `tpm_mtls_agent.sealing.nv_secret.seal_into_nv` and `new_policy`.
        """
        value = self.authorizations.secret
        with self._open(pinned_name(self.state_dir)) as tpm:
            policy, counter = self._new_policy(tpm)
            public = nv_public(index, len(secret), policy=policy, with_authorization=value is not None)
            file = self._write_nv_policy(public.name, policy) if policy else None
            try:
                seal_into_nv(tpm, public, secret, authorization=value)
            except BaseException:
                if file is not None:
                    remove_file(file)
                raise
        return public.name, file, counter

    def unseal_from_nv(self, index: int) -> bytes:
        """What is in the NV index ``index``; its policy is in the identity folder, or was given.

        Raises:
            as `tpm_mtls_agent.sealing.nv_secret.read_from_nv` and `remembered_policy`.
        """
        name = f"NV {index:#010x}"
        with self._open(pinned_name(self.state_dir)) as tpm:
            public = tpm.nv_secrets.inspect(index)
            found = find_policy(public.name, [self.state_dir / NV_POLICIES]) if public.policy else None
            if found is not None and not self.policy and policy_digest(found.policy) == public.policy:
                policy = found.policy
            else:
                takes_value = bool(public.attributes & (NvAttribute.AUTHREAD | NvAttribute.OWNERREAD))
                policy = self._remembered(tpm, public.policy, name, or_value=takes_value)
            return read_from_nv(
                tpm,
                public,
                policy=policy,
                signed_policies=signed_policies(policy, self.signed, self._folders(None)),
                authorization=self.authorizations.secret,
            )

    def _open(self, srk_name: bytes | None) -> AbstractContextManager[Tpm]:
        return open_tpm(
            self.tcti,
            owner_authorization=self.authorizations.owner,
            srk_authorization=self.authorizations.srk,
            expected_srk_name=srk_name,
        )

    def _new_policy(self, tpm: Tpm) -> tuple[tuple[Assertion, ...], int | None]:
        with_authorization = self.authorizations.secret is not None
        return new_policy(
            tpm, self.policy, self.state_dir, with_authorization=with_authorization, now=datetime.now(UTC)
        )

    def _remembered(self, tpm: Tpm, digest: bytes, name: str, *, or_value: bool) -> tuple[Assertion, ...]:
        if not digest and self.policy:
            raise UsageError(f"{name} has no policy", hint="leave --pcrs and the other options out")
        if not digest or (or_value and not self.policy):
            return ()
        return remembered_policy(tpm, self.policy, digest, now=datetime.now(UTC))

    def _write_nv_policy(self, name: bytes, policy: tuple[Assertion, ...]) -> Path:
        folder = self.state_dir / NV_POLICIES
        make_folder(folder)
        return write_policy(folder, PolicyDocument(name=name.hex(), policy=policy))

    def _folders(self, beside: Path | None) -> list[Path]:
        return [*([beside] if beside is not None else []), self.state_dir]


def tools_files(base: Path) -> tuple[Path, Path]:
    """tpm2-tools' two files, public and private part, of what is called ``base``."""
    return base.with_name(f"{base.name}.pub"), base.with_name(f"{base.name}.priv")


def read_tools_files(base: Path) -> SealedBlob:
    """What tpm2_create wrote into the files of ``base``, under the storage root key.

    Raises:
        PemError: it is no sealed data.
        StorageError: a file cannot be read.
    """
    public, private = (read_capped(path, limit=_PART_LIMIT) for path in tools_files(base))
    return SealedBlob(read_sealed_files(public, private), parent=SRK_HANDLE, empty_auth=False)


def check_for_tools(secret: bytes, base: Path) -> None:
    """Checks that ``secret`` can go into tpm2-tools' files.

    Raises:
        UsageError: it is too large for a TPM alone.
        StateError: a file is there already.
    """
    if len(secret) > SEALED_LIMIT:
        raise UsageError(
            f"the secret has {len(secret)} bytes, and a TPM seals {SEALED_LIMIT}",
            hint="tpm2-tools know no larger ones: leave --format out, or seal a key",
        )
    for path in tools_files(base):
        refuse_existing(path)


def write_tools_files(blob: SealedBlob, base: Path) -> tuple[Path, Path]:
    """Writes ``blob`` into tpm2-tools' files; if the second cannot be written, the first is removed.

    Raises:
        StateError: one is there already.
        StorageError: one cannot be written.
    """
    public, private = tools_files(base)
    write_atomic(public, blob.sealed.public_file, replace=False)
    try:
        write_atomic(private, blob.sealed.private_file, mode=0o600, replace=False)
    except BaseException:
        remove_file(public)
        raise
    return public, private
