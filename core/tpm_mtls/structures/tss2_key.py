"""Key files in the ``TSS2 PRIVATE KEY`` form: what tpm2-openssl and other tools read and write.

The form is that of `tpm_mtls.structures.tss2_file`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tpm_mtls.structures.tss2_file import ApprovedPolicy, Kind, Tss2File, parse_tss2_file

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tpm_mtls.structures.public_area import PublicArea
    from tpm_mtls.structures.tss2_file import PolicyCommand


@dataclass(frozen=True)
class Tss2Key:
    """A key file's content.

    Attributes:
        public: the public area.
        private: the private part, encrypted by its parent: content of TPM2B_PRIVATE, without its size.
        parent: handle of the parent: persistent, or a hierarchy whose standard primary it is (0x40000001).
        empty_auth: whether the key has no authorization value.
        has_policy: whether the file carries a policy ([1] or [3]); OpenSSL's provider refuses such a file.
        rsa_parent: whether the hierarchy's standard primary is the RSA-2048 one.
        description: what its maker wrote into it, if anything.
    """

    public: PublicArea
    private: bytes
    parent: int
    empty_auth: bool
    has_policy: bool = False
    rsa_parent: bool = False
    description: str | None = None

    def to_pem(
        self, policy: Sequence[PolicyCommand] = (), signed: Mapping[str, Sequence[PolicyCommand]] | None = None
    ) -> bytes:
        """The PEM file in the four-field form, which every tool reads; the optional fields are left out.

        Args:
            policy: commands that satisfy the key's policy, for tools that know the field; OpenSSL's provider does not.
            signed: policies that were signed for it, by their descriptions, each beginning with PolicyAuthorize.
        """
        return Tss2File(
            kind=Kind.LOADABLE,
            public=self.public,
            private=self.private,
            parent=self.parent,
            empty_auth=self.empty_auth,
            policy=tuple(policy),
            approved=tuple(ApprovedPolicy(name, tuple(commands)) for name, commands in (signed or {}).items()),
        ).to_pem()


def parse_tss2_pem(data: bytes, name: str = "the key file") -> Tss2Key:
    """The first ``TSS2 PRIVATE KEY`` block of PEM ``data``; ``name`` says where it came from, for the errors.

    Accepted beyond strict DER: emptyAuth TRUE as 0x01, and emptyAuth absent (meaning FALSE). The optional fields are
    read. It is not verified that any TPM can load the key.

    Raises:
        PemError: no such block, oversized, truncated, or not what the format says.
    """
    file = parse_tss2_file(data, name, Kind.LOADABLE)
    return Tss2Key(
        public=file.public,
        private=file.private,
        parent=file.parent,
        empty_auth=file.empty_auth,
        has_policy=bool(file.policy or file.approved),
        rsa_parent=file.rsa_parent,
        description=file.description,
    )
