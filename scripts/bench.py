"""Measurements, as counts and as ratios within one run: machines differ, these do not.

./run bench [--runs N] [--devices N]

Start-up times are medians of whole processes, taken in turns. TPM commands are read from libtss2's own capture on a
simulated TPM; how long a simulated TPM takes says nothing about a chip, so only a software key is compared with it.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from bench_enrollment import DEVICES, enrollments

from tpm_mtls.trace import read_trace
from tpm_mtls_simulator import Simulator

PYTHON = [sys.executable]
TPM_MTLS = [sys.executable, "-m", "tpm_mtls"]

START_UPS = {
    "python -c pass": [*PYTHON, "-c", "pass"],
    "python -c 'import ssl'": [*PYTHON, "-c", "import ssl"],
    "tpm-mtls --help": [*TPM_MTLS, "--help"],
    "tpm-mtls client get --help": [*TPM_MTLS, "client", "get", "--help"],
    "tpm-mtls keygen create --help": [*TPM_MTLS, "keygen", "create", "--help"],
}

# a server and a client context in one process over a socket pair; prints seconds per handshake, then goes on
HANDSHAKES = """
import socket, ssl, statistics, sys, threading, time
from pathlib import Path
from tpm_mtls.identity import Identity
from tpm_mtls.key_reference import parse_key_reference
from tpm_mtls.tls import client_context, server_context

key, certificate, server_key, server_certificate, trust, version, count = sys.argv[1:]
minimum = ssl.TLSVersion[version]
ours = Identity(key=parse_key_reference(key), certificate=Path(certificate), trust=Path(trust))
theirs = Identity(key=parse_key_reference(server_key), certificate=Path(server_certificate), trust=Path(trust))
client, server = client_context(ours, minimum_version=minimum), server_context(theirs, minimum_version=minimum)
client.maximum_version = minimum

def answer(connection):
    with server.wrap_socket(connection, server_side=True) as secured:
        secured.recv(1)

seconds = []
for _ in range(int(count)):
    near, far = socket.socketpair()
    thread = threading.Thread(target=answer, args=(far,))
    thread.start()
    begun = time.perf_counter()
    with client.wrap_socket(near, server_hostname="localhost") as secured:
        seconds.append(time.perf_counter() - begun)
        secured.send(b"x")
        thread.join()
print(statistics.median(seconds) if seconds else 0.0)
"""


def start_up_times(runs: int) -> None:
    """How long commands take to start, and how often longer than an empty Python."""
    seconds: dict[str, list[float]] = {name: [] for name in START_UPS}
    for _ in range(runs):
        for name, command in START_UPS.items():
            begun = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            seconds[name].append(time.perf_counter() - begun)
    base = statistics.median(seconds["python -c pass"])
    print(f"\nstart of a process (median of {runs}, in turns)")
    for name, values in seconds.items():
        median = statistics.median(values)
        print(f"  {name:<32} {median * 1000:6.0f} ms   {median / base:5.1f} x   +{(median - base) * 1000:.0f} ms")


class Bench:
    """A CA, a simulated TPM and what is certified in them, in the folder ``folder``."""

    def __init__(self, folder: Path, tcti: str) -> None:
        self.folder = folder
        self._tcti = tcti
        self._passphrase = "file:passphrase"  # noqa: S105 - where it is, not what it is
        (folder / "passphrase").touch(mode=0o600)
        (folder / "passphrase").write_text("only for this run")
        self._run("pki", "init", "--ca-dir", "ca", "--name", "Bench", "--passphrase", self._passphrase)

    def key_commands(self) -> None:
        """TPM commands of a key and its request, without and with a storage root key."""
        print("\nTPM commands for a new key and its certificate request (budget: 7 without, 4 with a storage root key)")
        for title in ("first key, no storage root key yet", "next key"):
            handle = "0x81000100" if title.startswith("first") else "0x81000101"
            create = self._count("keygen", "create", "--handle", handle)
            request = self._count("keygen", "csr", "--key", f"handle:{handle}", "--out", f"{handle}.csr")
            print(f"  {title:<36} create {_shown(create)};  csr, as a second process {_shown(request)}")

    def handshakes(self, runs: int) -> None:
        """TPM commands of a context and of a handshake, and handshakes against those with a software key."""
        server = self._certified("server", self._software_key("server"))
        software = self._certified("device", self._software_key("client"))
        print(
            "\nTPM commands of a TLS client, and its handshake against one with a software key (same server, one run)"
        )
        for algorithm in ("ecc-p256", "rsa-2048"):
            for form in ("--handle", "--out"):
                where = {"ecc-p256": "0x81000110", "rsa-2048": "0x81000111"}[algorithm]
                key = f"handle:{where}" if form == "--handle" else f"{algorithm}.key.pem"
                self._run("keygen", "create", "--algorithm", algorithm, form, key.removeprefix("handle:"))
                self._run("keygen", "csr", "--key", key, "--out", "request.pem")
                certified = (key, self._certified("device", "request.pem")[1])
                for version in ("TLSv1_3", "TLSv1_2"):
                    context = self._count_handshakes(certified, server, version, 0)
                    one = self._count_handshakes(certified, server, version, 1)
                    ratio = self._seconds(certified, server, version, runs) / self._seconds(
                        software, server, version, runs
                    )
                    print(
                        f"  {algorithm} {'handle' if form == '--handle' else 'file':<6} {version}   context "
                        f"{_shown(context)};  handshake {_shown(one - context)};  {ratio:.1f} x a software key's time"
                    )

    def _software_key(self, name: str) -> str:
        subprocess.run(
            [
                *("openssl", "req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-noenc"),
                *("-subj", f"/CN={name}", "-keyout", f"{name}.key.pem", "-out", f"{name}.csr.pem"),
            ],
            cwd=self.folder,
            check=True,
            capture_output=True,
        )
        return f"{name}.csr.pem"

    def _certified(self, profile: str, request: str) -> tuple[str, str]:
        """Key reference (for software keys) and certificate file."""
        name = "localhost" if profile == "server" else "bench-device"
        certificate = f"{request}.cert"
        self._run(
            *("pki", "issue", "--ca-dir", "ca", "--passphrase", self._passphrase, "--profile", profile),
            *("--name", name, "--csr", request, "--out", certificate),
        )
        return request.replace(".csr.", ".key."), certificate

    def _handshake_command(
        self, client: tuple[str, str], server: tuple[str, str], version: str, count: int
    ) -> list[str]:
        return [*PYTHON, "-c", HANDSHAKES, *client, *server, "ca/root.pem", version, str(count)]

    def _seconds(self, client: tuple[str, str], server: tuple[str, str], version: str, runs: int) -> float:
        return float(self._call(self._handshake_command(client, server, version, runs), self._tcti))

    def _count_handshakes(
        self, client: tuple[str, str], server: tuple[str, str], version: str, count: int
    ) -> Counter[str]:
        return self._counted(self._handshake_command(client, server, version, count))

    def _count(self, *arguments: str) -> Counter[str]:
        return self._counted([*TPM_MTLS, *arguments])

    def _counted(self, command: list[str]) -> Counter[str]:
        capture = self.folder / "capture"
        capture.unlink(missing_ok=True)
        self._call(command, f"pcap:{self._tcti}", capture=capture)
        return Counter(sent.name for sent in read_trace(capture))

    def _run(self, *arguments: str) -> str:
        return self._call([*TPM_MTLS, *arguments], self._tcti)

    def _call(self, command: list[str], tcti: str, *, capture: Path | None = None) -> str:
        environment = os.environ | {"TPM_MTLS_TCTI": tcti} | ({"TCTI_PCAP_FILE": str(capture)} if capture else {})
        return subprocess.run(
            command, cwd=self.folder, env=environment, check=True, stdout=subprocess.PIPE, text=True, timeout=300
        ).stdout


def _shown(commands: Counter[str]) -> str:
    each = ", ".join(f"{name} {count}" if count > 1 else name for name, count in commands.items())
    return f"{commands.total()}" + (f" ({each})" if each else "")


def main() -> None:
    """Runs all measurements."""
    parser = argparse.ArgumentParser(prog="./run bench", description="Measurements, as counts and as ratios.")
    parser.add_argument("--runs", type=int, default=15, help="runs of each start-up and each handshake")
    parser.add_argument("--devices", type=int, default=DEVICES, help="how many devices enroll; 1000 take a minute")
    arguments = parser.parse_args()
    start_up_times(arguments.runs)
    with tempfile.TemporaryDirectory(prefix="tpm-mtls-bench-") as folder:
        simulator = Simulator(Path(folder, "tpm"))
        try:
            bench = Bench(Path(folder), simulator.start(ek_certificates=False).tcti)
            bench.key_commands()
            bench.handshakes(arguments.runs)
        finally:
            simulator.stop()
        enrollments(Path(folder), arguments.devices)


if __name__ == "__main__":
    main()
