"""How many devices one CA process enrolls by the evidence of their TPMs, against bare TLS handshakes with it.

python scripts/bench_enrollment.py [--devices N]

The devices' TPMs are software here: a real chip takes a second for its part, and a thousand of them work at the same
time. Each device has its nonce, its opened credential and its signed request before the clock starts; what is measured
is what the CA does with them: connection, evidence, two certificates, SQLite with fsync, answer.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import http.client
import ssl
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING

from bench_table import Table
from cryptography import x509
from cryptography.hazmat.decrepit.ciphers.modes import CFB
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from cryptography.hazmat.primitives.kdf.concatkdf import ConcatKDFHash
from cryptography.hazmat.primitives.kdf.kbkdf import KBKDFHMAC, CounterLocation, Mode
from cryptography.hazmat.primitives.serialization import Encoding

from tpm_mtls import est, freshness
from tpm_mtls.certification_request import build_csr
from tpm_mtls.evidence import OID_ATTESTATION, encode_bundle

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from support.evidence import Certifier, SoftwareTpm, der, ek_extensions, new_root

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

CLIENTS = 8
"""Connections at a time."""

DEVICES = 200

_TURN = 50  # devices; then it is the handshakes' turn again, so that the machine's moods hit both
_CERTIFICATES = 2  # of the TLS key and of the attestation key
_TPM_MTLS = [sys.executable, "-m", "tpm_mtls"]

_NOTE = """\
The devices' TPMs are software here. What is measured is the CA's part: connection, evidence, two certificates, SQLite
with fsync, answer."""


@dataclass(frozen=True)
class Prepared:
    """A device that has only to send its request."""

    body: bytes
    cookie: str


@dataclass(frozen=True)
class Server:
    """A running ``tpm-mtls pki serve``."""

    pid: int
    port: int
    context: ssl.SSLContext

    def request(self, operation: str, body: bytes, **headers: str) -> tuple[bytes, str]:
        """Body and cookie of the answer, over a connection of its own."""
        connection = http.client.HTTPSConnection("127.0.0.1", self.port, timeout=60, context=self.context)
        with contextlib.closing(connection):
            connection.request(
                "POST", operation, body, {name.replace("_", "-"): text for name, text in headers.items()}
            )
            answer = connection.getresponse()
            content = answer.read()
        if answer.status != HTTPStatus.OK:
            raise RuntimeError(f"{operation}: {answer.status} {content!r}")
        return content, answer.headers.get("Set-Cookie", "").partition(";")[0]

    def enroll(self, device: Prepared) -> None:
        """An enrollment that has only its last message left."""
        content, _ = self.request(est.SIMPLE_ENROLL, device.body, Content_Type=est.CSR_TYPE, Cookie=device.cookie)
        if len(est.decode_certificates(content)) != _CERTIFICATES:
            raise RuntimeError("the CA did not answer with the certificates of both keys")

    def handshake(self, _: object) -> None:
        """A TLS handshake and nothing else."""
        connection = http.client.HTTPSConnection("127.0.0.1", self.port, timeout=60, context=self.context)
        with contextlib.closing(connection):
            connection.connect()

    def memory(self) -> float:
        """Its resident memory, MiB."""
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) / 1024  # given in KiB


def prepare(server: Server, maker: Certifier) -> Prepared:
    """All that a new device does before its request: EK certificate, nonce, activation, Certify, CSR."""
    tpm = SoftwareTpm()
    certificate = maker.certify("", tpm.ek.public_key(), ek_extensions())
    wanted = freshness.ActivationRequest(ak_public=tpm.ak.public.data, ek_certificate=der(certificate))
    content, cookie = server.request(
        est.NONCE,
        freshness.encode_request(freshness.NonceRequest(activation=wanted)),
        Content_Type=est.NONCE_TYPE,
    )
    answer = freshness.decode_response(content)
    if answer.activation is None:
        raise RuntimeError("the CA sent no credential")
    secret = activate(tpm, answer.activation.credential_blob, answer.activation.encrypted_secret)
    bundle = encode_bundle(tpm.certify(extra=freshness.bind(secret, answer.nonce)))
    csr = build_csr(tpm.key, hashes.SHA256(), subject=x509.Name([]), attributes={OID_ATTESTATION: bundle})
    return Prepared(est.encode_body(csr), cookie)


def activate(tpm: SoftwareTpm, blob: bytes, encrypted_secret: bytes) -> bytes:
    """TPM2_ActivateCredential with a P-256 EK: TPM 2.0 Library part 1 rev 1.59, 24.2 and C.6.1; nothing is verified."""
    x = encrypted_secret[4:36]
    point = ec.EllipticCurvePublicNumbers(
        int.from_bytes(x, "big"), int.from_bytes(encrypted_secret[38:70], "big"), ec.SECP256R1()
    )
    shared = tpm.ek.exchange(ec.ECDH(), point.public_key())
    own = tpm.ek.public_key().public_numbers().x.to_bytes(32, "big")
    seed = ConcatKDFHash(hashes.SHA256(), 32, b"IDENTITY\0" + x + own).derive(shared)
    key = KBKDFHMAC(
        hashes.SHA256(), Mode.CounterMode, 16, 4, 4, CounterLocation.BeforeFixed, b"STORAGE", tpm.ak.public.name, None
    ).derive(seed)
    identity = blob[4 + hashlib.sha256().digest_size :]
    return Cipher(algorithms.AES128(key), CFB(bytes(16))).decryptor().update(identity)[2:]


@contextlib.contextmanager
def serving(folder: Path, maker: Certifier) -> Iterator[Server]:
    """A CA in ``folder`` that lets in every TPM of ``maker``, and serves."""
    secret = folder / "enrollment.passphrase"
    secret.touch(mode=0o600)
    secret.write_text("only for this run")
    (folder / "maker.pem").write_bytes(maker.certificate.public_bytes(Encoding.PEM))
    ca = ("--ca-dir", str(folder / "enrollment-ca"))
    unlock = ("--passphrase", f"file:{secret}")
    for arguments in (
        ("init", *ca, *unlock, "--name", "Bench"),
        ("ek-roots", "add", *ca, str(folder / "maker.pem")),
        ("group", "set", *ca, "--name", "default", "--approval", "never"),
    ):
        subprocess.run(
            [*_TPM_MTLS, "pki", *arguments], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
    with (
        (folder / "serve.log").open("w") as log,
        subprocess.Popen(
            [*_TPM_MTLS, "pki", "serve", *ca, *unlock], stdout=subprocess.PIPE, stderr=log, text=True
        ) as process,
    ):
        try:
            if process.stdout is None:
                raise RuntimeError("no pipe to the CA")
            port = int(process.stdout.readline().strip().rpartition(":")[2])
            yield Server(process.pid, port, ssl.create_default_context(cafile=folder / "enrollment-ca" / "root.pem"))
        finally:
            process.terminate()


def enrollments(folder: Path, devices: int) -> Table:
    """Enrollments per second, as a ratio to handshakes that took turns with them, and the CA's memory."""
    maker = new_root()
    with serving(folder, maker) as server, ThreadPoolExecutor(CLIENTS) as pool:
        server.enroll(prepare(server, maker))  # what is loaded late is loaded now
        memory = [server.memory()]
        prepared = list(pool.map(partial(prepare, maker=maker), [server] * devices))
        memory.append(server.memory())
        handshaking = enrolling = 0.0
        for start in range(0, devices, _TURN):
            turn = prepared[start : start + _TURN]
            handshaking += seconds(pool, server.handshake, turn)
            enrolling += seconds(pool, server.enroll, turn)
        memory.append(server.memory())
    rows = (
        ("bare TLS handshakes with it", f"{devices / handshaking:.0f} in a second"),
        ("enrollments", f"{devices / enrolling:.0f} in a second: {handshaking / enrolling:.2f} of that (aim: 0.5)"),
        ("the CA's memory", "{:.0f} MiB, {:.0f} with all nonces open, {:.0f} at the end".format(*memory)),
    )
    note = f"{devices} devices enroll, {CLIENTS} at a time; one CA process, SQLite. {_NOTE}"
    return Table("Enrollment by the evidence of a TPM", note, ("", ""), rows)


def seconds(pool: ThreadPoolExecutor, work: Callable[[Prepared], None], items: Sequence[Prepared]) -> float:
    """How long it takes to do it with all of them."""
    begun = time.perf_counter()
    for _ in pool.map(work, items):
        pass
    return time.perf_counter() - begun


def main() -> None:
    """Runs this measurement alone."""
    parser = argparse.ArgumentParser(description="Enrollments per second of one CA process.")
    parser.add_argument("--devices", type=int, default=DEVICES, help="how many enroll; 1000 take about a minute")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tpm-mtls-bench-") as folder:
        print(enrollments(Path(folder), arguments.devices).as_text())


if __name__ == "__main__":
    main()
