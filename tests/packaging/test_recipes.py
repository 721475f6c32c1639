"""The Yocto layer and the Containerfile: what they name exists, what they need is what the project needs."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import pytest
from packaging.requirements import Requirement

from support.units import PACKAGING, UNITS
from tpm_mtls.cli import main

if TYPE_CHECKING:
    from collections.abc import Sequence

ROOT = PACKAGING.parent
(RECIPE,) = (PACKAGING / "yocto").glob("recipes-*/tpm-mtls/tpm-mtls_*.bb")
CONTAINERFILE = PACKAGING / "Containerfile"
_OUR_OWN_WAY = ("oelint.var.mandatoryvar.HOMEPAGE", "oelint.vars.homepageping")  # there is no page to name


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    found: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return found


def values(name: str) -> list[str]:
    """The words of a variable in the recipe."""
    (found,) = re.findall(rf'^{re.escape(name)} \+?= "(.*?)"', RECIPE.read_text(), re.DOTALL | re.MULTILINE)
    return str(found).replace("\\\n", " ").split()


def instructions(keyword: str) -> list[str]:
    """The arguments of the Containerfile's instructions of that kind, in order."""
    text = re.sub(r"^#.*\n", "", CONTAINERFILE.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    return re.findall(rf"^{keyword} (.*)$", text, re.MULTILINE)


# Yocto


def test_the_recipe_is_for_this_version_and_this_licence(project: dict[str, Any]) -> None:
    assert RECIPE.stem == f"tpm-mtls_{project['version']}"
    assert values("LICENSE") == [project["license"]]
    digest = hashlib.md5((ROOT / "LICENSE").read_bytes(), usedforsecurity=False).hexdigest()
    assert values("LIC_FILES_CHKSUM") == [f"file://LICENSE;md5={digest}"]


def test_the_recipe_asks_for_each_package_that_the_project_does(project: dict[str, Any]) -> None:
    asked = {name.removeprefix("python3-") for name in values("RDEPENDS:${PN}") if name.startswith("python3-")}
    assert asked - {"modules"} == {Requirement(line).name.lower() for line in project["dependencies"]}


def test_each_unit_is_in_one_package_of_the_recipe_and_each_package_starts_its_own() -> None:
    packages = ("${PN}", "${PN}-agent", "${PN}-renew", "${PN}-backend")
    owners: dict[str, list[str]] = {unit.name: [] for unit in UNITS}
    for package in packages:
        patterns = [Path(word).name for word in values(f"FILES:{package}") if "systemd_system_unitdir" in word]
        for unit in UNITS:
            if any(Path(unit.name).match(pattern) for pattern in patterns):
                owners[unit.name].append(package)
        for started in values(f"SYSTEMD_SERVICE:{package}"):
            assert owners[started] == [package]
    assert all(len(found) == 1 for found in owners.values())


def test_the_recipe_makes_the_users_that_the_units_run_as() -> None:
    text = RECIPE.read_text()
    for line in (PACKAGING / "sysusers.d" / "tpm-mtls.conf").read_text().splitlines():
        if line.startswith("u "):
            assert f"--system --gid {line.split()[1]} " in text
            assert f"--system {line.split()[1]}" in text


def test_each_file_that_the_recipe_installs_is_there() -> None:
    for path in re.findall(r"\$\{S\}/(\S+)", RECIPE.read_text()):
        assert list(ROOT.glob(path)), path


@pytest.mark.skipif(shutil.which("oelint-adv") is None, reason="needs oelint-adv")
def test_a_linter_of_recipes_finds_nothing() -> None:
    command = ["oelint-adv", "--quiet", "--nobackup", "--hide", "info"]
    for rule in _OUR_OWN_WAY:
        command += ["--suppress", rule]
    done = subprocess.run([*command, RECIPE], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


# the container


def test_the_build_needs_only_what_is_let_in() -> None:
    """Nothing of the checkout but the sources: no environment, no history, no key that lies around."""
    ignore = (PACKAGING / "Containerfile.dockerignore").read_text().splitlines()
    assert ignore[0] == "**"
    let_in = {line[1:] for line in ignore if line.startswith("!")}
    assert all((ROOT / name).exists() for name in let_in)
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]
    packages = {path.partition("/")[0] for path in build["targets"]["wheel"]["packages"]}
    assert let_in >= packages | {"pyproject.toml", "constraints.txt", "README.md", "LICENSE", "scripts"}
    assert not let_in & {".git", ".venv", "tests"}


def test_the_container_is_of_one_release_and_runs_as_nobody_in_particular() -> None:
    assert {line.split()[0] for line in instructions("FROM")} == {"debian:trixie-slim"}
    (user,) = instructions("USER")
    assert user == "990:990"
    assert "useradd --system --uid 990 " in CONTAINERFILE.read_text()
    assert "--require-hashes" in CONTAINERFILE.read_text()


def test_the_containers_command_is_ours() -> None:
    assert instructions("ENTRYPOINT") == ['["/usr/bin/tpm-mtls"]']
    (stop,) = instructions("STOPSIGNAL")
    assert stop == "SIGTERM"


@pytest.mark.skipif(shutil.which("hadolint") is None, reason="needs hadolint")
def test_a_linter_of_containerfiles_finds_nothing() -> None:
    done = subprocess.run(["hadolint", CONTAINERFILE], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


# what the page says of them


def test_the_pages_commands_in_containers_are_ours() -> None:
    page = (ROOT / "docs" / "how-to" / "install.md").read_text().replace("\\\n", " ")
    commands = re.findall(r"^podman run .*? tpm-mtls ((?:pki|client) .*)$", page, re.MULTILINE)
    assert len(commands) == 3
    for line in commands:
        parse(re.findall(r'"[^"]*"|\S+', line))


def parse(words: Sequence[str]) -> None:
    """Reads a command line of ours, without running it."""
    command: click.Command = main
    context = command.make_context("tpm-mtls", list(words))
    while isinstance(command := context.command, click.Group):
        name, found, rest = command.resolve_command(context, [*context._protected_args, *context.args])
        assert found is not None
        context = found.make_context(name, rest, parent=context)
