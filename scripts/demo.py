"""The whole story, told by the commands that a user would type: from no key at all to a request signed inside a TPM.

./run demo [--tcti device:/dev/tpmrm0] [--keep DIR]

Without ``--tcti`` the device's TPM is a simulated one. Everything lies in one temporary folder, which is removed at the
end; on a real TPM the key that was made is removed too, even if the story broke off.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from demo_attestation import tell_attestation
from stage import DemoFailedError, Stage

from tpm_mtls.trace import read_trace

if TYPE_CHECKING:
    from collections.abc import Iterator

DEVICE = "sensor-17"
SECOND_DEVICE = "sensor-18"
BOUND_DEVICE = "sensor-19"
DATABASE = "sqlite:///telemetry.sqlite"
SECRET, API_KEY = "third-party-api-key", "sk_live_abc123xyz"

TEST_PCR = 16  # for debugging: PC Client Platform TPM Profile, table of PCR attributes; can be reset


class Demo:
    """One run of the story in the folder ``folder``."""

    def __init__(self, folder: Path, tcti: str | None) -> None:
        self.folder = folder
        self._given_tcti = tcti
        self._stage = Stage(folder)
        self.tell = self._stage.tell
        self._passphrase = f"file:{self._stage.private_file('passphrase', secrets.token_urlsafe(24))}"

    def run(self) -> None:
        """Tells the story from its beginning to its end; a TPM that was given has its key removed whatever happens."""
        with self._stage.ends:
            try:
                self._tell()
            finally:
                if self._given_tcti:
                    self._remove_key()

    def _tell(self) -> None:
        self._the_tpm()
        ca = self._the_ca()
        self._first_boot(ca, DEVICE, "device", "persistent")
        backend = self._the_backend()
        self._a_request(backend)
        self._signed_in_the_tpm(backend)
        self._a_copy_is_useless(ca, backend)
        self._revoked(backend)
        self._nothing_on_disk()
        self._bound_to_the_boot(ca, backend)
        tcti = self._without_a_secret(ca, backend)
        tell_attestation(self._stage, backend, DATABASE, tcti)
        self._a_programs_secret()

    def _the_tpm(self) -> None:
        if self._given_tcti:
            self.tell.chapter("The device's TPM", "A real one.")
            self._use_tpm(self._given_tcti)
            return
        self.tell.chapter(
            "The device's TPM",
            "No chip is needed for this story: swtpm simulates one, "
            "with an endorsement key and its maker's certificate.",
        )
        self._use_tpm(self._stage.start_simulator("tpm"))

    def _use_tpm(self, tcti: str) -> None:
        self.tell.command(["export", f"TPM_MTLS_TCTI={tcti}"])
        self._stage.environment |= {"TPM_MTLS_TCTI": tcti, "TPM2TOOLS_TCTI": tcti}

    def _the_ca(self) -> str:
        self.tell.chapter(
            "A CA",
            "A root, an issuing CA, and an EST server (RFC 7030) where devices ask for certificates. "
            "A bootstrap token, good for one certificate, names the device.",
        )
        self._stage.run("pki", "init", "--ca-dir", "ca", "--name", "Demo", "--passphrase", self._passphrase)
        for device in (DEVICE, SECOND_DEVICE, BOUND_DEVICE):
            self._stage.run("pki", "token", "create", "--ca-dir", "ca", "--device", device, "--out", f"{device}.token")
        return self._stage.serve(
            "pki", "serve", "--ca-dir", "ca", "--passphrase", self._passphrase, "--listen", "127.0.0.1:0"
        )

    def _first_boot(self, ca: str, device: str, state: str, key: str, *options: str) -> None:
        if key == "persistent":
            self.tell.chapter(
                "The device's first boot",
                "The TPM makes a key that never leaves it, signs a request with it, and the CA answers with a "
                "certificate. A second run would change nothing.",
            )
        self._stage.run(
            *("keygen", "first-boot", "--state-dir", state, "--ca", ca),
            *("--token-file", f"{device}.token", "--trust", "ca/root.pem", "--key", key, *options),
            *(["--no-mirror"] if self._given_tcti else []),  # nothing of the story stays in a real TPM
        )
        if key == "persistent":
            self._stage.run("keygen", "status", "--state-dir", state)

    def _the_backend(self) -> str:
        self.tell.chapter(
            "The backend", "It asks every caller for a certificate of this CA and reads its revocation list."
        )
        self._stage.openssl(
            *("req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-noenc"),
            *("-subj", "/CN=localhost", "-keyout", "backend.key.pem", "-out", "backend.csr.pem"),
        )
        self._stage.run(
            *("pki", "issue", "--ca-dir", "ca", "--passphrase", self._passphrase, "--profile", "server"),
            *("--name", "localhost", "--ip", "127.0.0.1", "--csr", "backend.csr.pem", "--out", "backend.cert.pem"),
        )
        return self._stage.serve(
            *("server", "run", "--listen", "127.0.0.1:0", "--cert", "backend.cert.pem", "--key", "backend.key.pem"),
            *("--client-ca", "ca/root.pem", "--crl", "ca/crl.pem", "--database", DATABASE),
            *("--require-attestation", "/telemetry"),
        )

    def _a_request(self, backend: str) -> None:
        self.tell.chapter(
            "A request",
            "Mutual TLS: the server proves who it is, and the client does so with the key in its TPM.",
        )
        self._client("get", f"{backend}/whoami")

    def _signed_in_the_tpm(self, backend: str) -> None:
        self.tell.chapter(
            "Proof: the handshake's signature was made in the TPM",
            "Every command that the client sends to the TPM, and how long the TPM took.",
        )
        request = ("client", "get", f"{backend}/whoami", "--state-dir", "device", "--relay", "always")
        self._stage.run("trace", "--pcap", "capture.pcapng", "--", "tpm-mtls", *request)
        commands = read_trace(self.folder / "capture.pcapng")
        signatures = [command for command in commands if command.name == "Sign" and command.response == 0]
        self._stage.expect(len(signatures) == 1, f"expected one TPM2_Sign, saw {len(signatures)}")
        self.tell.proof("the handshake was one TPM command, the signature")

    def _a_copy_is_useless(self, ca: str, backend: str) -> None:
        self.tell.chapter(
            "Proof: a copied key file is useless",
            "A second device keeps its key in a file (TSS2 PRIVATE KEY) instead of the chip's memory. "
            "Its whole folder is copied to a machine with another TPM.",
        )
        self._first_boot(ca, SECOND_DEVICE, "second", "tss2")
        self._client("get", f"{backend}/whoami", state="second")
        self.tell.command(["cp", "-r", "second", "stolen"])
        shutil.copytree(self.folder / "second", self.folder / "stolen")
        thief = self._stage.start_simulator("thiefs-tpm")
        # the other TPM has a storage key too: only the seed inside the chip differs
        self._stage.run("keygen", "create", "--tcti", thief, "--out", "thief.key.pem")
        self._client("get", f"{backend}/whoami", state="stolen", tcti=thief, expect=4)
        self.tell.proof("the other TPM refuses the key")

    def _revoked(self, backend: str) -> None:
        self.tell.chapter("Proof: a revoked certificate is refused at the next request")
        self._stage.run(
            "pki", "revoke", "--ca-dir", "ca", "--passphrase", self._passphrase, "--device", SECOND_DEVICE, "--reason",
            "keyCompromise",
        )  # fmt: skip
        self._client("get", f"{backend}/whoami", state="second", expect=7)
        self._client("get", f"{backend}/healthz")
        self.tell.proof("the revoked device is refused, the other one goes on")

    def _nothing_on_disk(self) -> None:
        self.tell.chapter(
            "Proof: the client's key is nowhere on disk in the clear",
            "openssl looks for a private key in each file of both identity folders. (The folders of the simulated TPMs "
            "play the chips, so they do not count.)",
        )
        for path in sorted([*(self.folder / "device").iterdir(), *(self.folder / "second").iterdir()]):
            found = subprocess.run(
                ["openssl", "pkey", "-in", str(path), "-noout", "-passin", "pass:"],
                capture_output=True,
                check=False,
                env={"PATH": os.environ["PATH"]},
            )
            self._stage.expect(found.returncode != 0, f"{path} holds a private key")
            self.tell.output(f"{path.relative_to(self.folder)!s:<28} {_what_is(path)}")
        self.tell.proof("no file holds a private key")

    def _bound_to_the_boot(self, ca: str, backend: str) -> None:
        self.tell.chapter(
            "Proof: a key that works only on what was booted",
            "A third device's key is bound to a PCR, into which a machine measures what it boots. (16 is there to try "
            "things; a device takes 0, 2, 4 and 7.) Then something else is measured.",
        )
        self._stage.tool("tpm2_pcrreset", str(TEST_PCR))
        self._first_boot(ca, BOUND_DEVICE, "bound", "tss2", "--pcrs", f"sha256:{TEST_PCR}")
        self._client("get", f"{backend}/whoami", state="bound")
        self._stage.tool("tpm2_pcrextend", f"{TEST_PCR}:sha256={hashlib.sha256(b'something else').hexdigest()}")
        self._client("get", f"{backend}/whoami", state="bound", expect=4)
        self._stage.run("policy", "check", "--state-dir", "bound", expect=4)
        self._stage.tool("tpm2_pcrreset", str(TEST_PCR))
        self._client("get", f"{backend}/whoami", state="bound")
        self.tell.proof("the TPM refuses the key as long as the machine's state is another")

    def _without_a_secret(self, ca: str, backend: str) -> str:
        self.tell.chapter(
            "A device without any secret on board",
            "No token: its maker's certificate vouches for the TPM, the TPM vouches for the key, and the CA checks "
            "both. The administrator says which makers to trust, and that nobody need approve each TPM.",
        )
        tcti = self._stage.start_simulator("third-tpm")
        for name in ("swtpm-localca-rootca-cert.pem", "issuercert.pem"):
            self._stage.run("pki", "ek-roots", "add", "--ca-dir", "ca", f"third-tpm/ca/{name}")
        self._stage.run("pki", "group", "set", "--ca-dir", "ca", "--name", "default", "--approval", "never")
        boot = ("keygen", "first-boot", "--state-dir", "third", "--ca", ca, "--trust", "ca/root.pem", "--tcti", tcti)
        self._stage.run(*boot)
        self._client("get", f"{backend}/whoami", state="third", tcti=tcti)
        self.tell.command(["rm", "-r", "third"])
        shutil.rmtree(self.folder / "third")
        self._stage.run(*boot)
        self.tell.proof("the wiped disk has its identity back, from the TPM's own memory")
        return tcti

    def _a_programs_secret(self) -> None:
        self.tell.chapter(
            "Proof: a program's secret is behind the TPM, too",
            "The agent keeps it in the TPM's memory, and gives it to programs at a Unix socket.",
        )
        agent = ("--socket", "tpmd.sock")
        self._stage.serve(
            *("agent", "run", *agent, "--state-dir", "device", "--run-dir", "device-run", "--no-renew"),
            begins="tpmd.sock",
        )
        self._stage.run("secret", "set", SECRET, *agent, given=API_KEY)
        try:
            got = self._stage.run("secret", "get", SECRET, *agent)
            self._stage.expect(got == API_KEY, "another secret came back")
            for path in sorted(path for path in (self.folder / "device").rglob("*") if path.is_file()):
                found = [word for word in (SECRET, API_KEY) if word.encode() in path.read_bytes()]
                self._stage.expect(not found, f"{path} holds {found}")
            self.tell.proof("neither the secret nor its name is in any file of the device")
        finally:
            self._stage.run("secret", "del", SECRET, *agent)  # nothing of the story stays in a real TPM

    def _remove_key(self) -> None:
        identity = self.folder / "device" / "identity.json"
        if not identity.exists():
            return
        record = json.loads(identity.read_text())
        self.tell.chapter("Afterwards", "The key that this story made is removed from the TPM again.")
        handle = record["key"].removeprefix("handle:")
        self._stage.run("keygen", "remove", "--handle", handle, "--yes")

    def _client(
        self,
        verb: str,
        url: str,
        *arguments: str,
        state: str = "device",
        tcti: str | None = None,
        expect: int = 0,
    ) -> None:
        elsewhere = ["--tcti", tcti] if tcti else []
        self._stage.run("client", verb, url, "--state-dir", state, *elsewhere, *arguments, expect=expect)


def _what_is(path: Path) -> str:
    first = path.read_bytes().split(b"\n", 1)[0].decode(errors="replace")
    if "TSS2 PRIVATE KEY" in first:
        return "a key that only its own TPM can use"
    return first.strip("-").removeprefix("BEGIN ").lower() if first.startswith("-----") else "a record"


@contextlib.contextmanager
def _folder(keep: Path | None) -> Iterator[Path]:
    if keep is not None:
        keep.mkdir(parents=True)
        yield keep.absolute()
        return
    with tempfile.TemporaryDirectory(prefix="tpm-mtls-demo-") as folder:
        yield Path(folder)


def main() -> int:
    """Runs the demo; 0 when every step did what the story says."""
    parser = argparse.ArgumentParser(prog="./run demo", description="The whole story on a simulated TPM, or on yours.")
    parser.add_argument("--tcti", help="a real TPM, such as device:/dev/tpmrm0")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep everything in this new folder")
    arguments = parser.parse_args()
    started = time.monotonic()
    with _folder(arguments.keep) as folder:
        try:
            Demo(folder, arguments.tcti).run()
        except DemoFailedError as error:
            print(f"tpm-mtls: error: the demo stopped: {error}", file=sys.stderr)
            print("tpm-mtls: hint: run it with --keep DIR and look at the logs there", file=sys.stderr)
            return 1
    print(f"\nAll of it in {time.monotonic() - started:.0f} seconds.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
