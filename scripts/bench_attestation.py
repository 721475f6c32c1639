"""How many quotes a backend verifies in a second of one core, against tpm2_checkquote and a bare signature.

python scripts/bench_attestation.py [--quotes N]

The devices' TPMs are software here: what is measured is the backend's part, from the body of the request to the answer,
without HTTP and the database. Time is the processor's, so that other programs of the machine do not count.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bench_table import Table
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from tpm_mtls.attestation.messages import decode_evidence, encode
from tpm_mtls.event_log import EventType
from tpm_mtls.ima import parse_ima_log, replay_ima
from tpm_mtls_server.attestation import AttestationTrust, verify

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from support.device_ca import DeviceCa
from support.event_logs import agile_log, entry, made, program_data, values_of
from support.ima_lists import file_entry
from support.judgements import Device, changed_pcr
from support.quotes import NONCE, pcrs_file, some_values

if TYPE_CHECKING:
    from collections.abc import Callable

    from support.judgements import Case
    from support.quotes import Values

QUOTES = 1000

_TURNS = 10  # each kind gets its share of the machine's moods
_TOOL_SHARE = 10  # a process for each quote: a tenth of them will do
_BANKS = ("sha1", "sha256", "sha384", "sha512")
_EVENTS = 41  # as a recorded boot with shim, GRUB and Secure Boot has
_FILES = 1000
_PART = 32  # bytes of r and s

_NOTE = """\
From the body of the request to the answer, without HTTP and the database; keys are P-256, the processor's time counts.
A quote of a device that came before finds its certificate verified already. The event log has {events} entries in four
banks, the IMA list {files} files. `tpm2_checkquote` is a process for each quote, and verifies signature, nonce and PCR
values only."""


@dataclass
class Kind:
    """Something that is done again and again.

    Attributes:
        name: of the row.
        once: does it, with the number of the quote.
        share: it is done for one in so many quotes.
        seconds: how much of the processor's time it took.
        count: how often it was done.
    """

    name: str
    once: Callable[[int], None]
    share: int = 1
    seconds: float = 0.0
    count: int = 0

    def turn(self, quotes: int) -> None:
        """Does it for ``quotes`` quotes."""
        count = max(quotes // self.share, 1)
        begun = _processor_time()
        for number in range(self.count, self.count + count):
            self.once(number)
        self.seconds += _processor_time() - begun
        self.count += count

    @property
    def rate(self) -> float:
        """How often it is done in a second of one core."""
        return self.count / self.seconds


def verifications(folder: Path, quotes: int) -> Table:
    """Quotes verified per second and core, in several kinds that take turns; the files are in ``folder``."""
    device = Device(DeviceCa(folder))
    boot, values = _boot()
    ima = b"".join(file_entry(f"/usr/lib/file-{number}.so", bytes([number % 256])) for number in range(_FILES))
    measured = {"sha256": values["sha256"] | {10: replay_ima(parse_ima_log(ima), "sha256")}}
    plain = device.case()
    logged = device.case(measured, event_log=boot, ima_log=ima)
    other = device.case(changed_pcr(values, 14), event_log=boot)
    other = other.known(baseline=device.case(values, event_log=boot).judge().seen)
    bare = Kind("bare signature verification", _bare(device, plain))
    ours = Kind("**all nine checks**, device came before", _checks(plain, trusted=True))
    tool = Kind("`tpm2_checkquote`", _tool(folder, device, plain), share=_TOOL_SHARE)
    kinds = (
        bare,
        ours,
        Kind("the same, its first quote: certificate and chain, too", _first(device, plain, quotes)),
        Kind("the same, with event log", _checks(device.case(values, event_log=boot), trusted=True)),
        Kind("the same, with event log and IMA list", _checks(logged, trusted=True), share=_TOOL_SHARE),
        Kind("refused: it booted something else, explained", _checks(other, trusted=False)),
        tool,
    )
    for kind in kinds:
        kind.once(0)  # what is loaded late is loaded now
    for _ in range(_TURNS):
        for kind in kinds:
            kind.turn(max(quotes // _TURNS, 1))
    rows = tuple(
        (kind.name, f"{kind.rate:.0f}", f"{kind.rate / bare.rate:.2f}", f"{kind.rate / tool.rate:.1f}")
        for kind in kinds
    )
    head = ("", "in a second of one core", "against the bare signature", "against `tpm2_checkquote`")
    return Table("Verifying a quote", _NOTE.format(events=_EVENTS, files=_FILES), head, rows)


def _boot() -> tuple[bytes, Values]:
    """An event log, and the values to which it leads."""
    entries = [
        entry(number % 8, EventType.EV_EFI_BOOT_SERVICES_APPLICATION, program_data(f"\\EFI\\{number}"), banks=_BANKS)
        for number in range(_EVENTS)
    ]
    zeros = {pcr: bytes(32) for pcr in range(24)}
    values = {"sha256": zeros | dict(values_of(made(*entries, banks=_BANKS)))}
    return agile_log(*entries, banks=_BANKS), values


def _bare(device: Device, case: Case) -> Callable[[int], None]:
    key, attest, signature = device.ak.key.public_key(), case.evidence.attest, case.evidence.signature
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise TypeError("the attestation key is of P-256")
    s = int.from_bytes(signature[-_PART:], "big")
    r = int.from_bytes(signature[-2 * _PART - 2 : -_PART - 2], "big")
    value, algorithm = encode_dss_signature(r, s), ec.ECDSA(hashes.SHA256())
    return lambda _: key.verify(value, attest, algorithm)


def _checks(case: Case, *, trusted: bool) -> Callable[[int], None]:
    body = encode(case.evidence)

    def once(_: int) -> None:
        judgement = verify(decode_evidence(body), case.facts, now=case.now)
        encode(judgement.verdict())
        if judgement.trusted is not trusted:
            raise RuntimeError(f"unexpected: {judgement.text}")

    return once


def _first(device: Device, case: Case, quotes: int) -> Callable[[int], None]:
    """Each quote comes to a backend that has never seen the device."""
    every = [case.known(trust=AttestationTrust([device.ca.root, device.ca.issuing])) for _ in range(quotes + _TURNS)]
    checks = [_checks(each, trusted=True) for each in every]
    return lambda number: checks[number](number)


def _tool(folder: Path, device: Device, case: Case) -> Callable[[int], None]:
    (folder / "key").write_bytes(device.ak.public.data)
    (folder / "message").write_bytes(case.evidence.attest)
    (folder / "signature").write_bytes(case.evidence.signature)
    (folder / "pcrs").write_bytes(pcrs_file({"sha256": {pcr: some_values()["sha256"][pcr] for pcr in range(16)}}))
    files = ["-u", "key", "-m", "message", "-s", "signature", "-f", "pcrs", "-q", NONCE.hex()]
    command = ["tpm2_checkquote", *files]
    return lambda _: subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL) and None


def _processor_time() -> float:
    """Seconds that this process and its children have computed."""
    return sum(
        used.ru_utime + used.ru_stime
        for used in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


def main() -> None:
    """Runs this measurement alone."""
    parser = argparse.ArgumentParser(description="Quotes verified in a second of one core.")
    parser.add_argument("--quotes", type=int, default=QUOTES, help="how many of each kind")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tpm-mtls-bench-") as folder:
        print(verifications(Path(folder), arguments.quotes).as_text())


if __name__ == "__main__":
    main()
