"""What the bench's programs need: a simulated TPM with a key in it, a CA, a server."""

from __future__ import annotations

import contextlib
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bench_programs import Target
from cryptography.hazmat.primitives import serialization

from tpm_mtls.files import write_atomic
from tpm_mtls.identity import Identity
from tpm_mtls.relay import relay_tcti
from tpm_mtls.trace import read_trace

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from support.bound_keys import make_bound_key
from support.certificates import TestCa
from support.nginx import running_nginx
from support.policies import pcr_policy
from support.tpm import SimulatedTpm
from support.tpm_keys import make_key

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.tpm_keys import TpmKey

ALGORITHMS = ("ecc-p256", "rsa-2048")
VERSIONS = ("TLSv1_3", "TLSv1_2")
_HANDLES = {"ecc-p256": 0x81000110, "rsa-2048": 0x81000111}


@dataclass(frozen=True)
class Keys:
    """One algorithm's keys in the TPM, each as its reference and its certificate chain.

    Attributes:
        handle: a persistent one.
        file: one in a TSS2 PEM file.
        bound: a persistent one that the TPM uses only while a PCR is as it is.
    """

    handle: tuple[str, Path]
    file: tuple[str, Path]
    bound: tuple[str, Path]


class Stage:
    """See the module's docstring; ``folder`` is for this run only."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tpm = SimulatedTpm(folder / "simulator")
        self._keys: dict[str, Keys] = {}
        self._bound = folder / "bound"
        self._bound.mkdir()
        self.ca = TestCa(folder, "bench")
        software = self.ca.software_identity("bench-device")
        self.software = (str(software.key), software.certificate)
        self._server = self.ca.software_identity("localhost")
        # openssl s_time sends its own certificate and none of the chain: the server knows the issuing CA already
        self._clients_trust = folder / "clients.pem"
        chain = [self.ca.root, self.ca.issuing]
        write_atomic(self._clients_trust, b"".join(each.public_bytes(serialization.Encoding.PEM) for each in chain))

    def close(self) -> None:
        """Switches the TPM off."""
        self.tpm.stop()

    def keys(self, algorithm: str) -> Keys:
        """The TPM's keys of ``algorithm``, made when they are first asked for."""
        if algorithm not in self._keys:
            handle = _HANDLES[algorithm]
            # persistent, too: a TPM has three slots for others, and needs one of them to use a persistent key
            bound = make_bound_key(
                self.tpm, self._bound, pcr_policy(), algorithm=algorithm, name=algorithm, handle=handle + 0x10
            )
            self._keys[algorithm] = Keys(
                handle=self._certified(make_key(self.tpm, self.folder, algorithm, handle=handle)),
                file=self._certified(make_key(self.tpm, self.folder, algorithm)),
                bound=self._certified(bound),
            )
        return self._keys[algorithm]

    @contextlib.contextmanager
    def server(self, *, sessions: bool) -> Iterator[int]:
        """The port of an nginx that wants client certificates; with or without sessions that can be resumed."""
        more = "" if sessions else "ssl_session_tickets off; ssl_session_cache off;"
        identity = Identity(key=self._server.key, certificate=self._server.certificate, trust=self._clients_trust)
        folder = self.folder / ("nginx-sessions" if sessions else "nginx")
        with running_nginx(folder, identity, more=f"{more} keepalive_requests 1000000;") as url:
            yield int(url.rpartition(":")[2])

    def target(self, port: int, key: tuple[str, Path], tcti: str | None, version: str = "TLSv1_3") -> Target:
        """A request to ``port`` with ``key``."""
        return Target(port, self.ca.trust, key[1], key[0], tcti, version)

    def tcti(self, *, relay: bool, model: str | None = None) -> str:
        """The way to the TPM; with a latency model it is as slow as that chip."""
        slow = ["--latency-model", model] if model else []
        if relay:
            return relay_tcti(self.tpm.tcti, policies=[self._bound], options=slow)
        return relay_tcti(self.tpm.tcti, options=["--pass-through", *slow]) if model else self.tpm.tcti

    def counting_tcti(self, *, relay: bool) -> str:
        """The way to the TPM on which libtss2's own capture sees what reaches it: behind the relay, if there is one."""
        observed = f"pcap:{self.tpm.tcti}"
        return relay_tcti(observed, policies=[self._bound]) if relay else observed

    @property
    def capture(self) -> Path:
        """Where that capture goes, if TCTI_PCAP_FILE says so."""
        return self.folder / "commands.pcapng"

    @contextlib.contextmanager
    def counting(self) -> Iterator[Counter[str]]:
        """Fills with the commands that reach the TPM by `counting_tcti` while the block lasts."""
        self.capture.unlink(missing_ok=True)
        commands: Counter[str] = Counter()
        yield commands
        if self.capture.exists():
            commands.update(each.name for each in read_trace(self.capture))

    def _certified(self, key: TpmKey) -> tuple[str, Path]:
        identity = self.ca.identity(key.reference, key.public_key, "bench-device")
        return str(identity.key), identity.certificate
