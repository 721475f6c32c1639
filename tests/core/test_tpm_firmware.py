"""Known-bad firmware, by the makers' own lists: bad versions are named, the first good ones are not."""

from __future__ import annotations

import pytest

from tpm_mtls.tpm_firmware import FAULTS, firmware_faults

ROCA, ST, INTEL, FALCON, HMAC = "CVE-2017-15361", "CVE-2019-16863", "CVE-2019-11090", "CVE-2023-1017", "CVE-2025-2884"


def names(vendor: str, firmware: str) -> list[str]:
    return [fault.name for fault in firmware_faults(vendor, firmware)]


@pytest.mark.parametrize(
    ("vendor", "bad", "good", "name"),
    [
        ("IFX", "5.61.2785.0", "5.62.3126.0", ROCA),
        ("IFX", "7.61.10.58368", "7.62.12.13824", ROCA),
        ("IFX", "133.32.0.0", "133.33.0.0", ROCA),
        ("IFX", "7.63.13.6400", "7.66.75.44546", HMAC),
        ("IFX", "7.85.17.51968", "7.86.75.49410", HMAC),
        ("IFX", "15.21.64.11776", "15.23.69.0", HMAC),
        ("STM", "71.12.0.0", "71.16.0.0", ST),
        ("STM", "73.4.17568.4452", "73.20.17568.6684", ST),
        ("STM", "73.8.0.0", "73.64.0.0", ST),
        ("STM", "73.5.0.0", "73.21.0.0", ST),
        ("STM", "73.9.0.0", "73.65.0.0", ST),
        ("STM", "74.16.0.0", "74.20.0.0", ST),
        ("STM", "74.8.0.0", "74.64.0.0", ST),
        ("INTC", "11.8.50.3399", "11.8.65.3590", INTEL),
        ("INTC", "12.0.30.1421", "12.0.35.1427", INTEL),
        ("INTC", "3.0.13.1144", "3.1.65.0", INTEL),
        ("NTC", "1.3.2.8", "1.3.2.20", FALCON),
        ("NTC", "1.3.0.1", "1.3.0.2", FALCON),
        ("NTC", "7.2.3.1", "7.2.4.1", HMAC),
    ],
)
def test_a_bad_version_is_named_and_the_first_good_one_is_not(vendor: str, bad: str, good: str, name: str) -> None:
    assert name in names(vendor, bad)
    assert name not in names(vendor, good)


def test_versions_between_the_listed_ones_are_as_their_maker_says_not_affected() -> None:
    assert names("STM", "73.6.0.0") == []


def test_a_version_of_another_maker_says_nothing() -> None:
    assert names("IBM", "7.61.0.0") == []
    assert names("STM ", "71.12.0.0") == [ST]  # as it is reported, four characters


@pytest.mark.parametrize("firmware", ["", "7", "seven", "7.61.x", "-1.0", "7..61", "\u0667.61"])
def test_what_is_no_version_is_of_no_known_bad_one(firmware: str) -> None:
    assert names("NTC", firmware) == []


def test_every_fault_says_what_it_means_and_who_says_so() -> None:
    for fault in FAULTS:
        assert str(fault).startswith(fault.name)
        assert fault.source
        assert all(first < fixed for first, fixed in fault.versions)
