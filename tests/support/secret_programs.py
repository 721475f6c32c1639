"""Programs that use an agent all at once, and know what must be there after it was killed in the midst of that."""

from __future__ import annotations

import random
import threading
from typing import TYPE_CHECKING

from tpm_mtls.errors import NoSuchSecretError, PeerUnreachableError, ResponseError

if TYPE_CHECKING:
    from tpm_mtls.secrets import Client

_EACH = 3
"""Names of a program."""

_SIZES = (16, 32, 90, 200, 400, 740, 741, 5000)
"""Bytes of values: each size of NV index, and files."""

_WORDS = ("set", "set", "set", "get", "get", "delete")


class Secret:
    """What a program knows of one of its secrets.

    Attributes:
        name: its name.
        may_be: the values that it may have, none for no secret: one, unless an answer did not arrive.
        index: its NV index, if it is there for certain.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.may_be: set[str | None] = {None}
        self.index: int | None = None

    def set(self, client: Client, value: str) -> None:
        """Sets it; until the answer arrives it may have either value."""
        self.may_be.add(value)
        index = client.set(self.name, value)
        self.may_be = {value}
        assert self.index in {None, index}, f"{self.name} moved"
        self.index = index

    def get(self, client: Client) -> None:
        """Gets it: a value that it may have, and from then on has."""
        found: str | None = None
        try:
            found = client.get(self.name)
        except NoSuchSecretError:
            assert None in self.may_be, f"{self.name} is lost"
        assert found in self.may_be, f"{self.name} has a value that nobody gave it last"
        self.may_be = {found}

    def delete(self, client: Client) -> None:
        """Deletes it."""
        self.may_be.add(None)
        self.index = None
        client.delete(self.name)
        self.may_be = {None}


class Programs:
    """So many ``programs``, each with secrets of its own; ``seed`` decides what they do.

    Attributes:
        secrets: all of them.
        acknowledged: how many changes were answered so far.
    """

    def __init__(self, programs: int, seed: int) -> None:
        self._chance = random.Random(seed)  # noqa: S311 - to be repeated, no secret
        self._each = [[Secret(f"program-{at}-{name}") for name in range(_EACH)] for at in range(programs)]
        self.secrets = [secret for each in self._each for secret in each]
        self.acknowledged = 0
        self._faults: list[AssertionError] = []

    @property
    def living(self) -> list[Secret]:
        """The secrets that are there, or may be."""
        return [secret for secret in self.secrets if secret.may_be != {None}]

    def start(self, client: Client) -> list[threading.Thread]:
        """Lets them ask ``client``'s agent until it answers no more."""
        seeds = [self._chance.random() for _ in self._each]
        threads = [
            threading.Thread(target=self._use, args=(client, own, random.Random(seed)))  # noqa: S311 - as above
            for own, seed in zip(self._each, seeds, strict=True)
        ]
        for thread in threads:
            thread.start()
        return threads

    def end(self, threads: list[threading.Thread]) -> None:
        """Waits for them; raises what one of them found wrong."""
        for thread in threads:
            thread.join()
        if self._faults:
            raise self._faults[0]

    def check(self, client: Client) -> None:
        """Each secret has a value that it may have."""
        for secret in self.living:
            secret.get(client)

    def _use(self, client: Client, own: list[Secret], chance: random.Random) -> None:
        try:
            while True:
                self._step(client, chance.choice(own), chance)
        except (PeerUnreachableError, ResponseError):  # it was killed; the latter where no byte of an answer came
            return
        except AssertionError as fault:
            self._faults.append(fault)

    def _step(self, client: Client, secret: Secret, chance: random.Random) -> None:
        word = chance.choice(_WORDS)
        # a name that nobody has is asked for as seldom as can be: an agent makes who guesses names wait
        if word == "set" or secret.may_be == {None}:
            secret.set(client, f"{chance.getrandbits(64):016x}".ljust(chance.choice(_SIZES), "."))
        elif word == "get":
            secret.get(client)
            return
        else:
            secret.delete(client)
        self.acknowledged += 1
