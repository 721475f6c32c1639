"""docs/how-to/install.md: its commands as they stand, and the files that it has people write."""

from __future__ import annotations

import os
import re
import shutil
from typing import TYPE_CHECKING

import pytest

from support.how_to import HowTo
from support.installed import REPRODUCIBLE, ROOT, debian_package
from support.other_user import give, not_given
from support.units import FOLDER, UNITS, analyze, command, installed, needs_systemd, setting, settings
from tpm_mtls.certificates import load_certificates

if TYPE_CHECKING:
    from pathlib import Path

    from support.tpm import SimulatedTpm

FIRST_BOOT = FOLDER / "tpm-mtls-first-boot.service"

# systemd does not run here: what is to be started must be there
_SYSTEMCTL = 'systemctl() { for unit in "${@:3}"; do [ -e "$UNITS/$unit" ]; done; }\n'


@pytest.fixture
def page(tpm: SimulatedTpm, tmp_path: Path) -> HowTo:
    (tmp_path / "etc").mkdir()
    instead = {
        "packaging/debian/build.sh": f"{ROOT}/packaging/debian/build.sh",
        "apt-get install": "dpkg-deb --info",
        ".venv/bin/python -m hatchling": f"cd {ROOT} && .venv/bin/python -m hatchling",
        "--directory dist": f"--directory {tmp_path}/dist && cd {tmp_path}",
        "/etc/tpm-mtls": f"{tmp_path}/etc",
        "/var/lib/tpm-mtls-pki": f"{tmp_path}/ca",
        "pki init": f"pki init --ca-dir {tmp_path}/ca",
        "pki issue": f"pki issue --ca-dir {tmp_path}/ca",
    }
    return HowTo("install", tpm, tmp_path, instead)


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="needs dpkg")
def test_a_debian_package_is_the_same_each_time(page: HowTo, tmp_path_factory: pytest.TempPathFactory) -> None:
    (block,) = page.blocks("A Debian package")
    done = page.run(block, **REPRODUCIBLE)
    assert "Package: tpm-mtls" in done.stdout
    (built,) = page.folder.glob("dist/*.deb")
    assert built.read_bytes() == debian_package(tmp_path_factory).read_bytes()


def test_a_wheel(page: HowTo) -> None:
    """The requirements come from this environment, and so does pip, which would fetch them."""
    (block,) = page.blocks("A wheel")
    vendoring = f"python {ROOT}/scripts/vendor.py dist/*.whl app/lib/python3*/site-packages"
    block = block.replace("app/bin/pip", f"{vendoring}\npython -m pip --python app/bin/python")
    block = block.replace("install dist", "install --no-index dist").replace("-m venv", "-m venv --without-pip")
    assert "tpm-mtls, version" in page.run(block, PIP_NO_COMPILE="1").stdout


def test_a_ca_and_a_backend(page: HowTo) -> None:
    folder = page.folder / "ca"
    folder.mkdir()  # the package makes it, and it is the service's
    if os.geteuid() == 0:
        give(folder)
    (block,) = page.blocks("A CA")
    page.run(_SYSTEMCTL + block, UNITS=str(FOLDER))
    passphrase = page.folder / "etc" / "ca.passphrase"
    assert passphrase.stat().st_mode & 0o777 == 0o600

    if os.geteuid() == 0:
        assert not not_given(folder)

    (block,) = page.blocks("A backend")
    page.run(_SYSTEMCTL + block, UNITS=str(FOLDER))
    assert (page.folder / "etc" / "server.key.pem").stat().st_mode & 0o777 == 0o600
    chain = load_certificates(page.folder / "etc" / "server.pem")
    assert len(chain) == 2
    assert (page.folder / "etc" / "ca.pem").read_bytes() == (page.folder / "ca" / "root.pem").read_bytes()


def test_a_device(page: HowTo) -> None:
    (page.folder / "root.pem").write_text("root")
    for block in page.blocks("A device"):
        page.run(_SYSTEMCTL + block, UNITS=str(FOLDER))
    assert (page.folder / "etc" / "first-boot.env").read_text() == "CA=https://ca.example:8443\n"


def test_a_command_of_the_page_that_fails_would_be_noticed(page: HowTo) -> None:
    with pytest.raises(AssertionError):
        page.run(_SYSTEMCTL + "systemctl enable --now tpm-mtls-frist-boot.service", UNITS=str(FOLDER))


@pytest.mark.parametrize("unit", ["first-boot", "pki", "server"])
def test_what_goes_into_an_environment_file_is_what_the_unit_reads(unit: str, page: HowTo) -> None:
    (block,) = re.findall(rf"^# /etc/tpm-mtls/{unit}\.env\n(.*?)^```$", page.text, re.DOTALL | re.MULTILINE)
    given = dict(line.split("=", 1) for line in block.splitlines())
    service = FOLDER / f"tpm-mtls-{unit}.service"
    assert setting(service, "EnvironmentFile").removeprefix("-") == f"/etc/tpm-mtls/{unit}.env"
    texts = [path.read_text() for path in UNITS if f"/etc/tpm-mtls/{unit}.env" in path.read_text()]
    for name in given:
        assert any(f"${{{name}}}" in text or f"${name}\n" in text for text in texts), name
    for value in re.findall(r"\$\{(\w+)\}", setting(service, "ExecStart")):
        defaults = " ".join(settings(service, "Environment"))
        assert value in given or f"{value}=" in defaults or value == "CREDENTIALS_DIRECTORY"
    assert command(service)


@needs_systemd
def test_a_program_that_needs_the_identity_is_tried_until_it_is_there(page: HowTo, tmp_path: Path) -> None:
    (block,) = [block for block in page.blocks("A device", "ini") if "[Unit]" in block]
    units = installed(tmp_path)
    shop = tmp_path / "shop.service"
    shop.write_text("[Service]\nExecStart=/usr/bin/true\n")
    drop_in = tmp_path / "shop.service.d" / "identity.conf"
    drop_in.parent.mkdir()
    drop_in.write_text(block)
    done = analyze("verify", "--man=no", shop, units[FIRST_BOOT.name])
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    assert settings(drop_in, "Requires") == []  # what requires a unit that fails is not started again with it
    assert setting(drop_in, "Wants") == setting(drop_in, "After") == FIRST_BOOT.name
    assert (setting(drop_in, "Restart"), setting(drop_in, "StartLimitIntervalSec")) == ("on-failure", "0")
    assert int(setting(drop_in, "RestartSec")) >= int(setting(FIRST_BOOT, "RestartSec"))
    test, option, path = setting(drop_in, "ExecStartPre").split()
    assert (test, option) == ("/usr/bin/test", "-e")
    assert f"|!{path}" in settings(FIRST_BOOT, "ConditionPathExists")


def test_what_a_service_reads_is_written_before_it_is_started(page: HowTo) -> None:
    for section, unit in (("A CA", "pki"), ("A backend", "server")):
        part = page.text.partition(f"\n## {section}\n")[2].partition("\n## ")[0]
        assert part.index(f"# /etc/tpm-mtls/{unit}.env") < part.index("systemctl enable --now")


def test_the_table_of_services_has_them_all(page: HowTo) -> None:
    (table,) = [part for part in page.text.split("\n## ") if part.startswith("The services")]
    named = set()
    for first, second in re.findall(r"^\| (tpm-mtls-[\w-]+\.service)(?:, (\.\w+))? \|", table, re.MULTILINE):
        named |= {first, first.replace(".service", second)} if second else {first}
    assert named == {unit.name for unit in UNITS}


def test_each_drop_in_that_the_page_names_is_there(page: HowTo) -> None:
    named = re.findall(r"`(drop-ins/[^`]+\.conf)`", page.text)
    assert len(named) >= 4
    assert all((FOLDER / name).exists() for name in named)
