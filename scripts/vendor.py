"""Copies what a wheel requires, and what that requires, from this environment into another: no network, same files.

    python scripts/vendor.py dist/tpm_mtls-0.1.0-py3-none-any.whl target/lib/python3.11/site-packages

The environment is the one that runs this: ``./run setup`` made it from constraints.txt, hashes checked. Prints what was
copied, one ``NAME VERSION`` a line.
"""

from __future__ import annotations

import shutil
import sys
from importlib import metadata
from pathlib import Path
from zipfile import ZipFile

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


def required(wheel: Path) -> list[metadata.Distribution]:
    """The distributions that ``wheel`` needs in this environment, by name.

    Raises:
        SystemExit: one of them is not here, or of another version.
    """
    found: dict[str, metadata.Distribution] = {}
    wanted = _requirements(_wheel_metadata(wheel).get_all("Requires-Dist") or [], extras=frozenset())
    while wanted:
        requirement = wanted.pop()
        name = canonicalize_name(requirement.name)
        if name in found and not requirement.extras:
            continue
        try:
            distribution = metadata.distribution(requirement.name)
        except metadata.PackageNotFoundError:
            sys.exit(f"{requirement} is not in this environment: ./run setup")
        if not requirement.specifier.contains(distribution.version, prereleases=True):
            sys.exit(f"{requirement} is wanted, {distribution.version} is in this environment: ./run setup")
        found[name] = distribution
        wanted += _requirements(distribution.requires or [], extras=frozenset(requirement.extras))
    return [found[name] for name in sorted(found)]


def copy(distribution: metadata.Distribution, target: Path) -> None:
    """Copies the modules and the metadata of ``distribution`` to the folder ``target``; no programs, no bytecode."""
    for file in distribution.files or []:
        if ".." in file.parts or "__pycache__" in file.parts:
            continue
        place = target / file
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(str(file.locate()), place)


def _requirements(lines: list[str], *, extras: frozenset[str]) -> list[Requirement]:
    requirements = [Requirement(line) for line in lines]
    return [
        each
        for each in requirements
        if each.marker is None or any(each.marker.evaluate({"extra": extra}) for extra in extras | {""})
    ]


def _wheel_metadata(wheel: Path) -> metadata.PackageMetadata:
    with ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        folder = name.partition("/")[0]
        return _InWheel(archive.read(f"{folder}/METADATA").decode()).metadata


class _InWheel(metadata.Distribution):
    """The metadata of a distribution that is not installed."""

    def __init__(self, text: str) -> None:
        self._text = text

    def read_text(self, filename: str) -> str | None:
        return self._text if filename == "METADATA" else None

    def locate_file(self, path: object) -> Path:
        raise FileNotFoundError(path)


if __name__ == "__main__":
    for each in required(Path(sys.argv[1])):
        copy(each, Path(sys.argv[2]))
        print(each.metadata["Name"], each.version)
