"""Keys with policies, made with tpm2-tools, and their policy files written by hand: what the relay must agree with."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cryptography.hazmat.primitives import serialization

from support.tpm_keys import ALGORITHMS, SRK, make_srk, set_empty_auth

if TYPE_CHECKING:
    from pathlib import Path

    from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes

    from support.tpm import SimulatedTpm

_ATTRIBUTES = "fixedtpm|fixedparent|sensitivedataorigin|sign"
_COUNTER_ATTRIBUTES = "nt=counter|ownerwrite|authread|ownerread|no_da"

COUNTER = "0x01500100"

Json = dict[str, Any]


@dataclass(frozen=True)
class PolicyKey:
    """A key with a policy and no userWithAuth.

    Attributes:
        pem: TSS2 PEM file, in the form that the provider loads.
        context: tpm2-tools' context file.
        name: its Name.
        authorization: its authorization value.
        public_key: for signatures and certificates.
    """

    pem: Path
    context: Path
    name: bytes
    authorization: str
    public_key: PublicKeyTypes


@dataclass(frozen=True)
class Operator:
    """Whoever signs policies, with a key outside of any TPM.

    Attributes:
        key: private PEM file.
        public: TPMT_PUBLIC.
        name: its Name.
        scheme: tpm2-tools' name of the signature's kind.
    """

    key: Path
    public: bytes
    name: bytes
    scheme: str


@dataclass
class PolicyWorkshop:
    """Makes policies, keys and files in ``folder`` for ``tpm``; ``policies`` is where their files go."""

    tpm: SimulatedTpm
    folder: Path
    policies: Path
    _number: int = field(default=0)

    def pcr(self, *pcrs: int, bank: str = "sha256", values: dict[int, bytes] | None = None) -> Json:
        """The assertion that ``pcrs`` have ``values``, by default those that they have now."""
        if values is None:
            numbers = ",".join(map(str, pcrs))
            self.tpm.tool("tpm2_pcrread", f"{bank}:{numbers}", "-o", "pcrs.bin", cwd=self.folder)
            read = (self.folder / "pcrs.bin").read_bytes()
            size = len(read) // len(pcrs)
            values = {pcr: read[at * size :][:size] for at, pcr in enumerate(pcrs)}
        return {
            "type": "pcr",
            "bank": bank,
            "pcrs": list(pcrs),
            "digest": hashlib.sha256(b"".join(values[pcr] for pcr in pcrs)).hexdigest(),
            "values": {str(pcr): values[pcr].hex() for pcr in pcrs},
            "recorded": "2026-11-22T03:00:00Z",
        }

    def extend(self, pcr: int, bank: str = "sha256") -> None:
        """What booting something else does."""
        sizes = {"sha1": 20, "sha256": 32, "sha384": 48, "sha512": 64}
        self.tpm.tool("tpm2_pcrextend", f"{pcr}:{bank}={'5a' * sizes[bank]}")

    def counter(self) -> Json:
        """Defines the rollback counter, and makes it count once; returns its assertion for the version that it has."""
        self.tpm.tool("tpm2_nvdefine", COUNTER, "-C", "o", "-s", "8", "-a", _COUNTER_ATTRIBUTES)
        self.advance()
        name = self._nv_name()
        value = self.tpm.tool("tpm2_nvread", COUNTER, "-C", "o", "-s", "8", "-o", "nv.bin", cwd=self.folder)
        assert value.returncode == 0
        operand = (self.folder / "nv.bin").read_bytes().hex()
        return {"type": "nv", "index": COUNTER, "name": name, "operation": "unsigned-le", "operand": operand}

    def advance(self) -> None:
        """Increments the counter."""
        self.tpm.tool("tpm2_nvincrement", COUNTER, "-C", "o")

    def operator(self, kind: str = "ecc") -> Operator:
        """A new operator's key: ``ecc`` P-256, or ``rsa`` 2048."""
        stem = f"operator-{self._next()}"
        algorithm = (
            ("EC", "-pkeyopt", "ec_paramgen_curve:P-256")
            if kind == "ecc"
            else ("RSA", "-pkeyopt", "rsa_keygen_bits:2048")
        )
        self.tpm.tool("openssl", "genpkey", "-algorithm", *algorithm, "-out", f"{stem}.pem", cwd=self.folder)
        self.tpm.tool("openssl", "pkey", "-in", f"{stem}.pem", "-pubout", "-out", f"{stem}.pub.pem", cwd=self.folder)
        load = ("tpm2_loadexternal", "-C", "o", "-G", kind, "-u", f"{stem}.pub.pem", "-c", f"{stem}.ctx")
        self.tpm.tool(*load, "-n", f"{stem}.name", cwd=self.folder)
        self.tpm.tool("tpm2_readpublic", "-c", f"{stem}.ctx", "-o", f"{stem}.tss", cwd=self.folder)
        self.tpm.flush()
        public = (self.folder / f"{stem}.tss").read_bytes()[2:]
        name = (self.folder / f"{stem}.name").read_bytes()
        return Operator(self.folder / f"{stem}.pem", public, name, "ecdsa" if kind == "ecc" else "rsassa")

    def authorize(self, operator: Operator, policy_ref: bytes = b"") -> Json:
        """The assertion that ``operator`` approved."""
        signer = {"public": operator.public.hex(), "name": operator.name.hex()}
        return {"type": "authorize", "signer": signer, "policy_ref": policy_ref.hex()}

    def approve(
        self,
        operator: Operator,
        policy: list[Json],
        *,
        version: int = 1,
        policy_ref: bytes = b"",
        name: str | None = None,
        **changes: Any,  # noqa: ANN401 - whatever a damaged file holds
    ) -> Path:
        """A signed policy's file, signed by openssl; ``changes`` replace fields after that."""
        digest = self.digest(policy)
        signature = self.signature(operator, digest + policy_ref)
        fields = {
            "format": 1,
            "signer": operator.name.hex(),
            "policy_ref": policy_ref.hex(),
            "version": version,
            "description": "for a test",
            "policy": policy,
            "digest": digest.hex(),
            "signature": signature.hex(),
        }
        path = self.policies / f"{name or f'policy-{version:03}'}.signed-policy.json"
        path.write_text(json.dumps(fields | changes))
        return path

    def signature(self, operator: Operator, message: bytes) -> bytes:
        """TPMT_SIGNATURE over SHA-256 of ``message``; openssl signs, tpm2-tools make the TPM's structure of it."""
        (self.folder / "message").write_bytes(message)
        sign = ("openssl", "dgst", "-sha256", "-sign", str(operator.key), "-out", "signature", "message")
        self.tpm.tool(*sign, cwd=self.folder)
        plain = (self.folder / "signature").read_bytes()
        if operator.scheme == "rsassa":
            return bytes.fromhex("0014000b0100") + plain
        from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

        r, s = decode_dss_signature(plain)
        return bytes.fromhex("0018000b0020") + r.to_bytes(32, "big") + b"\x00\x20" + s.to_bytes(32, "big")

    def digest(self, policy: list[Json]) -> bytes:
        """The policyDigest of ``policy``, from a trial session of the TPM's own."""
        session = f"trial-{self._next()}.ctx"
        self.tpm.tool("tpm2_startauthsession", "-S", session, cwd=self.folder)
        try:
            for assertion in policy:
                self._assert(session, assertion)
        finally:
            self.tpm.tool("tpm2_flushcontext", session, cwd=self.folder)
        return (self.folder / "policy.digest").read_bytes()

    def key(
        self,
        policy: list[Json],
        *,
        algorithm: str = "ecc-p256",
        authorization: str = "",
        digest: bytes | None = None,
        write: bool = True,
    ) -> PolicyKey:
        """A key under the SRK that only ``policy`` opens, and its policy file."""
        make_srk(self.tpm, self.folder)
        stem = f"key-{self._next()}"
        (self.folder / f"{stem}.digest").write_bytes(digest or self.digest(policy))
        attributes = _ATTRIBUTES if authorization else f"{_ATTRIBUTES}|noda"
        secret = ("-p", authorization) if authorization else ()
        create = ("tpm2_create", "-C", SRK, "-G", ALGORITHMS[algorithm], "-a", attributes, "-L", f"{stem}.digest")
        self.tpm.tool(*create, *secret, "-u", f"{stem}.pub", "-r", f"{stem}.priv", cwd=self.folder)
        load = ("tpm2_load", "-C", SRK, "-u", f"{stem}.pub", "-r", f"{stem}.priv", "-c", f"{stem}.ctx")
        self.tpm.tool(*load, "-n", f"{stem}.name", cwd=self.folder)
        self.tpm.tool("tpm2_readpublic", "-c", f"{stem}.ctx", "-f", "pem", "-o", f"{stem}.spki", cwd=self.folder)
        encode = ("tpm2_encodeobject", "-C", SRK, "-u", f"{stem}.pub", "-r", f"{stem}.priv", "-o", f"{stem}.pem")
        self.tpm.tool(*encode, cwd=self.folder)
        self.tpm.tool("tpm2_flushcontext", "--loaded-session")
        self.tpm.flush()
        set_empty_auth(self.folder / f"{stem}.pem", empty=not authorization)
        name = (self.folder / f"{stem}.name").read_bytes()
        if write:
            self.write(name, policy)
        public_key = serialization.load_pem_public_key((self.folder / f"{stem}.spki").read_bytes())
        return PolicyKey(self.folder / f"{stem}.pem", self.folder / f"{stem}.ctx", name, authorization, public_key)

    def write(self, name: bytes, policy: list[Json]) -> Path:
        """A key's policy file."""
        path = self.policies / f"{name.hex()}.policy.json"
        path.write_text(json.dumps({"format": 1, "name": name.hex(), "policy": policy}))
        return path

    def _assert(self, session: str, assertion: Json) -> None:
        tail = ("-S", session, "-L", "policy.digest")
        kind = assertion["type"]
        if kind == "pcr":
            values = b"".join(bytes.fromhex(assertion["values"][str(pcr)]) for pcr in assertion["pcrs"])
            (self.folder / "pcrs.bin").write_bytes(values)
            selection = f"{assertion['bank']}:{','.join(map(str, assertion['pcrs']))}"
            self.tpm.tool("tpm2_policypcr", *tail, "-l", selection, "-f", "pcrs.bin", cwd=self.folder)
        elif kind == "auth-value":
            self.tpm.tool("tpm2_policyauthvalue", *tail, cwd=self.folder)
        elif kind == "nv":
            (self.folder / "operand").write_bytes(bytes.fromhex(assertion["operand"]))
            compare = ("tpm2_policynv", *tail, "-C", assertion["index"], "-i", "operand", assertion["index"], "ule")
            self.tpm.tool(*compare, cwd=self.folder)
        elif kind == "or":
            digests = []
            for branch in assertion["branches"]:
                path = self.folder / f"branch-{self._next()}.digest"
                path.write_bytes(self.digest(branch))
                digests.append(path.name)
            self.tpm.tool("tpm2_policyor", *tail, "-l", f"sha256:{','.join(digests)}", cwd=self.folder)
        else:
            (self.folder / "signer.name").write_bytes(bytes.fromhex(assertion["signer"]["name"]))
            (self.folder / "ref").write_bytes(bytes.fromhex(assertion["policy_ref"]))
            (self.folder / "any.digest").write_bytes(bytes(32))  # a trial session takes any approved policy
            reference = ("-q", "ref") if assertion["policy_ref"] else ()
            self.tpm.tool(
                "tpm2_policyauthorize", *tail, "-i", "any.digest", "-n", "signer.name", *reference, cwd=self.folder
            )

    def _nv_name(self) -> str:
        public = self.tpm.tool("tpm2_nvreadpublic", COUNTER).stdout
        return next(line.split(":")[1].strip() for line in public.splitlines() if "name:" in line)

    def _next(self) -> int:
        self._number += 1
        return self._number
