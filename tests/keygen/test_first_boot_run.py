"""First boot, done: on a simulated TPM, with a CA that lies."""

from __future__ import annotations

import base64
import resource
import socket
import subprocess
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from support import lying_ca
from support.enrollment import DEVICE, Bench
from support.lying_ca import DAY, LyingCa, Wrong
from tpm_mtls.certificates import load_certificates
from tpm_mtls.device_names import device_name
from tpm_mtls.errors import (
    AuthorizationError,
    CertificateExpiredError,
    CertificateMismatchError,
    CertificateNotYetValidError,
    CredentialError,
    HandleOccupiedError,
    IdentityError,
    PeerUnreachableError,
    PeerUntrustedError,
    PemError,
    RequestRefusedError,
    ResponseError,
    StateError,
    StorageError,
    StorageFullError,
    TctiInvalidError,
    TokenRefusedError,
    TpmMtlsError,
    TpmUnavailableError,
    UsageError,
)
from tpm_mtls.identity import load_identity
from tpm_mtls.key_algorithm import KeyAlgorithm
from tpm_mtls.key_reference import PersistentHandle
from tpm_mtls_keygen.first_boot_folder import Journal, KeyPlace, save_journal
from tpm_mtls_keygen.first_boot_settings import World
from tpm_mtls_keygen.first_boot_steps import Wish
from tpm_mtls_keygen.patience import Patience

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from support.tpm import SimulatedTpm

TSS2 = Wish(place=KeyPlace.TSS2)


@pytest.fixture
def bench(tpm: SimulatedTpm, tmp_path: Path) -> Iterator[Bench]:
    with LyingCa(tmp_path) as ca:
        yield Bench(tpm, ca, tmp_path / "state", ca.make_token(DEVICE))


def at(moment: datetime) -> World:
    return World(now=lambda: moment)


@pytest.mark.parametrize(
    "wish",
    [
        Wish(),
        TSS2,
        Wish(handle=0x81000123),
        Wish(algorithm=KeyAlgorithm.ECC_P384),
        Wish(algorithm=KeyAlgorithm.RSA_2048, place=KeyPlace.TSS2),
    ],
)
def test_a_new_device_gets_a_key_in_its_tpm_and_a_certificate_for_it(bench: Bench, wish: Wish) -> None:
    outcome = bench.run(wish=wish)

    assert outcome.changed
    assert outcome.record.device == DEVICE
    bench.assert_enrolled()
    assert bench.ca.seen == ["cacerts", "simpleenroll"]


def test_a_second_run_changes_nothing_and_asks_nobody(bench: Bench) -> None:
    bench.run()
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in bench.folder.iterdir()}
    bench.ca.seen.clear()

    outcome = bench.run()

    assert not outcome.changed
    assert bench.ca.seen == []
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in bench.folder.iterdir()} == before


def test_a_second_run_needs_neither_token_nor_trust_file_nor_authorization(bench: Bench, tmp_path: Path) -> None:
    bench.run()

    outcome = bench.run(token_file=tmp_path / "gone", trust=tmp_path / "gone", auth="credential:gone", ca_url="-")

    assert not outcome.changed


def test_the_identity_is_ready_for_a_tls_context(bench: Bench) -> None:
    bench.run()

    identity = load_identity(bench.folder)

    assert identity.key == PersistentHandle(0x81000100)
    assert device_name(load_certificates(identity.certificate)[0]) == DEVICE
    assert load_certificates(identity.trust) == (bench.ca.root.certificate,)


def test_the_record_says_where_the_key_is_and_who_made_it(bench: Bench) -> None:
    bench.run()
    record = bench.record()

    assert record["key"] == "handle:0x81000100"
    assert record["ca_url"] == bench.ca.url
    assert record["tpm_vendor"] == "IBM"
    assert record["enrolled_by"] == "token"
    assert bench.tpm.tool("tpm2_readpublic", "-c", "0x81000100").stdout.splitlines()[0] == f"name: {record['key_name']}"
    assert bench.tpm.tool("tpm2_readpublic", "-c", "0x81000001").stdout.splitlines()[0] == f"name: {record['srk_name']}"


def test_the_request_carries_the_device_s_name_and_verifies(bench: Bench, tmp_path: Path) -> None:
    requests: list[bytes] = []

    def keep(exchange: lying_ca.Exchange) -> None:
        requests.append(exchange.body)
        exchange.truth()

    bench.ca.next("simpleenroll", keep)
    bench.run()

    (tmp_path / "request.der").write_bytes(base64.b64decode(requests[0]))
    said = subprocess.run(
        ["openssl", "req", "-inform", "DER", "-in", tmp_path / "request.der", "-verify", "-noout", "-subject"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "verify OK" in said.stdout + said.stderr
    assert f"CN={DEVICE}" in said.stdout.replace(" ", "")  # OpenSSL 3.0 writes spaces


def test_a_key_with_an_authorization_value_needs_it(bench: Bench, tmp_path: Path) -> None:
    secret = tmp_path / "auth"
    secret.write_text("correct horse\n")
    secret.chmod(0o600)
    bench.ca.next("simpleenroll", lying_ca.cut_connection())
    with pytest.raises(PeerUnreachableError):
        bench.run(auth=f"file:{secret}")

    with pytest.raises(AuthorizationError):
        bench.run()
    bench.run(auth=f"file:{secret}")

    bench.assert_enrolled()


# -- interrupted, and what others do meanwhile ------------------------------------------------------------------------


@pytest.mark.parametrize("wish", [Wish(), TSS2])
def test_a_lost_answer_is_asked_for_again_with_the_same_key(bench: Bench, wish: Wish) -> None:
    bench.ca.next("simpleenroll", lying_ca.lose_answer())
    with pytest.raises(PeerUnreachableError):
        bench.run(wish=wish)

    bench.run()

    bench.assert_enrolled()
    assert len(bench.ca.issued) == 1


def test_two_runs_at_once_take_turns(bench: Bench) -> None:
    started = threading.Event()
    go_on = threading.Event()
    told: list[str] = []

    def slowly(exchange: lying_ca.Exchange) -> None:
        started.set()
        go_on.wait(10)
        exchange.truth()

    bench.ca.next("simpleenroll", slowly)
    outcomes: list[bool] = []
    first = threading.Thread(target=lambda: outcomes.append(bench.run().changed))
    first.start()
    assert started.wait(10)

    def tell(line: str) -> None:
        told.append(line)
        go_on.set()

    second = bench.run(World(tell=tell))
    first.join()

    assert outcomes == [True]
    assert not second.changed
    assert told == [f"another first boot is at work in {bench.folder}: waiting for it"]
    bench.assert_enrolled()


def test_an_occupied_handle_is_refused_and_what_is_there_stays(bench: Bench) -> None:
    bench.tpm.tool("tpm2_createprimary", "-C", "o", "-c", str(bench.ca.folder / "foreign.ctx"))
    bench.tpm.tool("tpm2_evictcontrol", "-C", "o", "-c", str(bench.ca.folder / "foreign.ctx"), "0x81000100")
    bench.tpm.flush()
    foreign = bench.tpm.tool("tpm2_readpublic", "-c", "0x81000100").stdout

    with pytest.raises(HandleOccupiedError, match="something else at handle:0x81000100"):
        bench.run(wish=Wish(handle=0x81000100))

    assert bench.listing() == {}
    assert bench.ca.seen == []
    outcome = bench.run()
    assert outcome.record.key == "handle:0x81000101"
    assert bench.tpm.tool("tpm2_readpublic", "-c", "0x81000100").stdout == foreign


def test_a_cleared_tpm_is_told_and_nothing_is_enrolled_anew(bench: Bench) -> None:
    bench.run()
    bench.tpm.tool("tpm2_clear", "-c", "p")
    bench.ca.seen.clear()

    with pytest.raises(IdentityError, match="is gone: nothing is there; this is another TPM, or it was cleared"):
        bench.run()

    assert bench.ca.seen == []
    assert bench.tpm.handles("persistent") == []


def test_a_removed_key_is_told(bench: Bench) -> None:
    bench.run()
    bench.tpm.tool("tpm2_evictcontrol", "-C", "o", "-c", "0x81000100")

    with pytest.raises(
        IdentityError, match=r"the device key handle:0x81000100 of sensor-17 is gone: nothing is there\n"
    ):
        bench.run()


def test_the_disk_of_another_device_is_told(bench: Bench, make_tpm: Callable[[], SimulatedTpm]) -> None:
    bench.run(wish=TSS2)
    other = make_tpm()

    with pytest.raises(IdentityError, match="cannot be loaded: this is another TPM"):
        bench.run(tcti=other.tcti)

    assert other.handles("persistent") == []


def test_another_certificate_in_the_folder_is_told(bench: Bench) -> None:
    bench.run()
    other = bench.ca.issuing.certificate.public_bytes(Encoding.PEM)
    (bench.folder / "device.cert.pem").write_bytes(other)

    with pytest.raises(CertificateMismatchError, match="belongs to another key"):
        bench.run()


def test_a_missing_certificate_is_told(bench: Bench) -> None:
    bench.run()
    (bench.folder / "device.cert.pem").unlink()

    with pytest.raises(IdentityError, match=r"device.cert.pem is missing"):
        bench.run()


def test_an_expired_certificate_is_told(bench: Bench) -> None:
    bench.run()

    with pytest.raises(CertificateExpiredError, match="expired at"):
        bench.run(at(datetime.now(UTC) + 91 * DAY))


def test_an_unfinished_run_with_another_trust_anchor_asks_the_ca_again(bench: Bench) -> None:
    bench.run()
    said = bench.record()
    (bench.folder / "identity.json").unlink()
    save_journal(
        bench.folder,
        Journal(
            key=said["key"],
            algorithm=KeyAlgorithm(said["algorithm"]),
            key_name=said["key_name"],
            srk_name=said["srk_name"],
        ),
    )
    both = bench.ca.write(
        "both.pem", (bench.ca.trust.read_bytes() + bench.ca.foreign.certificate.public_bytes(Encoding.PEM))
    )
    bench.ca.seen.clear()

    bench.run(trust=both)

    assert bench.ca.seen == ["cacerts", "simpleenroll"]
    assert len(load_certificates(bench.folder / "ca.cert.pem")) == 2
    bench.assert_enrolled()


# -- a CA that lies, or is not there ----------------------------------------------------------------------------------

YEARS = 365 * DAY
NOW = datetime.now(UTC)


@pytest.mark.parametrize(
    ("operation", "lie", "error", "message"),
    [
        ("cacerts", lying_ca.html_page(), ResponseError, "text/html"),
        ("simpleenroll", lying_ca.html_page(), ResponseError, "text/html"),
        ("simpleenroll", lying_ca.truncated(), ResponseError, "no certificates in CMS form"),
        ("simpleenroll", lying_ca.oversize(100_000), ResponseError, "larger than"),
        ("simpleenroll", lying_ca.other_key(), CertificateMismatchError, "no certificate is for this key"),
        ("simpleenroll", lying_ca.foreign_chain(), CertificateMismatchError, "no certificate is for this key"),
        (
            "simpleenroll",
            lying_ca.truth(Wrong(not_before=NOW + DAY, not_after=NOW + YEARS)),
            CertificateNotYetValidError,
            "valid only from .* and the clock says",
        ),
        (
            "simpleenroll",
            lying_ca.truth(Wrong(not_before=NOW - YEARS, not_after=NOW - DAY)),
            CertificateExpiredError,
            "expired at",
        ),
        (
            "simpleenroll",
            lying_ca.truth(Wrong(name="sensor-18")),
            CertificateMismatchError,
            "sensor-18, not for sensor-17",
        ),
        (
            "simpleenroll",
            lying_ca.truth(Wrong(usage=x509.oid.ExtendedKeyUsageOID.SERVER_AUTH)),
            CredentialError,
            "not for TLS clients",
        ),
        ("simpleenroll", lying_ca.status(401), TokenRefusedError, "refused the bootstrap token"),
        ("simpleenroll", lying_ca.status(403), TokenRefusedError, "refused the bootstrap token"),
        ("simpleenroll", lying_ca.status(400, "bad request"), RequestRefusedError, "400 to simpleenroll: bad request"),
        ("simpleenroll", lying_ca.status(202, retry_after=60), RequestRefusedError, "has not decided yet"),
        ("simpleenroll", lying_ca.status(503), RequestRefusedError, "503 unavailable"),
        ("cacerts", lying_ca.cut_connection(), PeerUnreachableError, "ended the connection"),
    ],
)
def test_no_lie_gets_into_the_folder_and_the_truth_afterwards_finishes(
    bench: Bench, operation: str, lie: Callable[[lying_ca.Exchange], None], error: type[TpmMtlsError], message: str
) -> None:
    bench.ca.next(operation, lie)

    with pytest.raises(error, match=message) as refusal:
        bench.run()

    assert refusal.value.hint
    assert set(bench.listing()) == (set() if operation == "cacerts" else {"first-boot.json"})
    bench.run()
    bench.assert_enrolled()


def test_an_issuer_that_does_not_lead_to_the_root_is_refused(bench: Bench) -> None:
    bench.ca.next("simpleenroll", lying_ca.truth(Wrong(issuer=bench.ca.foreign)))

    with pytest.raises(CredentialError, match="does not lead to the trust anchor"):
        bench.run()

    assert set(bench.listing()) == {"first-boot.json"}


def test_a_chain_missing_from_cacerts_is_refused(bench: Bench) -> None:
    bench.ca.next("cacerts", lying_ca.foreign_chain())

    with pytest.raises(CredentialError, match="does not lead to the trust anchor: nothing there issued it"):
        bench.run()


def test_a_wrong_trust_anchor_is_refused_before_anything_is_made(bench: Bench) -> None:
    foreign = bench.ca.write("foreign.pem", bench.ca.foreign.certificate.public_bytes(Encoding.PEM))

    with pytest.raises(PeerUntrustedError, match="is not trusted"):
        bench.run(trust=foreign)

    assert bench.listing() == {}
    assert bench.tpm.handles("persistent") == []


def test_an_unreachable_ca_leaves_no_trace(bench: Bench) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]

    with pytest.raises(PeerUnreachableError, match="connection refused"):
        bench.run(ca_url=f"https://localhost:{port}")

    assert bench.listing() == {}
    assert bench.tpm.handles("persistent") == []


def test_a_ca_that_comes_late_is_waited_for(bench: Bench) -> None:
    bench.ca.next("cacerts", lying_ca.cut_connection(), lying_ca.status(503, retry_after=30))
    bench.ca.next("simpleenroll", lying_ca.status(202, retry_after=10))
    clock = [0.0]
    told: list[str] = []

    def sleep(seconds: float) -> None:
        clock[0] += seconds

    patience = Patience(seconds=120, monotonic=lambda: clock[0], sleep=sleep, uniform=lambda: 1.0)
    bench.run(World(patience=patience, tell=told.append))

    bench.assert_enrolled()
    assert clock[0] == 1.0 + 32.0 + 11.0
    assert [line.partition("; ")[2] for line in told if "; " in line] == [
        "trying again in 1 s",
        "trying again in 32 s",
        "trying again in 11 s",
    ]


# -- bad input --------------------------------------------------------------------------------------------------------


def test_a_used_token_is_refused_and_the_key_stays_for_a_new_one(bench: Bench, tmp_path: Path) -> None:
    bench.run(folder=tmp_path / "first")
    bench.tpm.tool("tpm2_evictcontrol", "-C", "o", "-c", "0x81000100")

    with pytest.raises(TokenRefusedError, match="the token is wrong or used"):
        bench.run()

    assert bench.own_handles() == ["0x81000100"]
    bench.run(token_file=bench.ca.make_token("sensor-18", "fresh"))
    bench.assert_enrolled()


def test_a_token_file_that_others_can_read_is_refused_before_anything_is_made(bench: Bench) -> None:
    bench.token_file.chmod(0o644)

    with pytest.raises(StorageError, match="can be read by other users"):
        bench.run()

    assert bench.listing() == {}
    assert bench.tpm.handles("persistent") == []


def test_a_missing_token_or_trust_file_is_told_first(bench: Bench, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="no such file"):
        bench.run(token_file=tmp_path / "none")
    with pytest.raises(StorageError, match="no such file"):
        bench.run(trust=tmp_path / "none")
    with pytest.raises(UsageError, match="not https"):
        bench.run(ca_url="http://localhost")

    assert bench.listing() == {}


def test_no_tpm_is_told_before_the_ca_is_asked(bench: Bench) -> None:
    bench.tpm.stop()

    with pytest.raises(TpmUnavailableError, match="no TPM answers"):
        bench.run()
    with pytest.raises(TctiInvalidError):
        bench.run(tcti="nonsense")

    assert bench.ca.seen == []
    assert bench.listing() == {}


def test_a_clock_before_the_certificate_s_start_is_told_and_nothing_is_stored(bench: Bench) -> None:
    with pytest.raises(CertificateNotYetValidError, match="and the clock says 2001-01-01") as refusal:
        bench.run(at(datetime(2001, 1, 1, tzinfo=UTC)))

    assert "set the clock right" in refusal.value.hint
    assert set(bench.listing()) == {"first-boot.json"}
    bench.run()
    bench.assert_enrolled()


def test_a_state_folder_that_is_a_file_is_told(bench: Bench) -> None:
    bench.folder.write_text("in the way")

    with pytest.raises(StorageError, match="not a directory"):
        bench.run()


def test_a_state_folder_below_a_file_is_told(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")

    with pytest.raises(StorageError, match=r"cannot make .*/file/state"):
        bench.run(folder=tmp_path / "file" / "state")


def test_a_file_system_that_takes_no_files_is_told(bench: Bench) -> None:
    """Even to root, as procfs."""
    with pytest.raises(StorageError, match=r"cannot write /proc/self/task/first-boot\.json"):
        bench.run(folder=Path("/proc/self/task"))

    assert bench.own_handles() == []


@pytest.mark.parametrize("wish", [Wish(), TSS2])
def test_a_full_disk_is_told_and_with_room_it_goes_on(bench: Bench, wish: Wish) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    bench.folder.mkdir()
    for size in (0, 100, 700):  # bytes: nothing fits, then the journal does, then the root certificate too
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
        try:
            with pytest.raises(StorageFullError, match="file too large"):
                bench.run(wish=wish)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert not [path for path in bench.folder.iterdir() if path.name.endswith(".tmp")]
        assert not (bench.folder / "identity.json").exists()

    bench.run(wish=wish)

    bench.assert_enrolled()


def test_damaged_records_are_told(bench: Bench) -> None:
    bench.folder.mkdir()
    for name in ("first-boot.json", "identity.json"):
        (bench.folder / name).write_text("{")
        with pytest.raises(IdentityError, match=f"{name} is damaged"):
            bench.run()
    (bench.folder / "identity.json").unlink()
    (bench.folder / "first-boot.json").write_text(
        '{"format": 2, "key": "device.key.pem", "algorithm": "ecc-p256", "key_name": "", "srk_name": ""}'
    )
    with pytest.raises(IdentityError, match="has format 2, expected 1"):
        bench.run()


def test_a_damaged_key_file_is_told(bench: Bench) -> None:
    bench.ca.next("simpleenroll", lying_ca.cut_connection())
    with pytest.raises(PeerUnreachableError):
        bench.run(wish=TSS2)
    key = bench.folder / "device.key.pem"
    key.write_bytes(key.read_bytes()[:100])

    with pytest.raises(PemError, match="no usable TSS2 key"):
        bench.run()


def test_options_that_contradict_what_is_there_are_refused(bench: Bench) -> None:
    bench.run()

    with pytest.raises(StateError, match="has the ecc-p256 key handle:0x81000100 already"):
        bench.run(wish=TSS2)


def test_a_slow_ca_does_not_hold_a_loaded_key_in_the_tpm(bench: Bench) -> None:
    loaded: list[list[str]] = []

    def look(exchange: lying_ca.Exchange) -> None:
        loaded.append(bench.tpm.handles("transient"))
        exchange.truth()

    bench.ca.next("simpleenroll", look)
    bench.run(wish=TSS2)

    assert loaded == [[]]
