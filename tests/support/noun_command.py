"""Running the commands of one noun, such as ``tpm-mtls pcr``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from tpm_mtls.cli import run

if TYPE_CHECKING:
    import pytest


class NounCommand:
    """Runs ``tpm-mtls NOUN …`` and gives its answer; ``errors`` is what the last one wrote to stderr."""

    def __init__(self, noun: str, capsys: pytest.CaptureFixture[str]) -> None:
        self._noun = noun
        self._capsys = capsys
        self.errors = ""

    def __call__(self, *arguments: object, status: int = 0) -> Any:  # noqa: ANN401 - JSON
        """The answer as JSON; where nothing was answered, the errors."""
        output = self.text(*arguments, "--json", status=status)
        return json.loads(output) if output else self.errors

    def text(self, *arguments: object, status: int = 0) -> str:
        """The answer as a person sees it."""
        assert run([self._noun, *map(str, arguments)]) == status
        output, self.errors = self._capsys.readouterr()
        assert "Traceback" not in self.errors
        if status:
            assert self.errors.startswith("tpm-mtls: error: ")
            assert "\ntpm-mtls: hint: " in self.errors
        return output
