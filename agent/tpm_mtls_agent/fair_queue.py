"""In which order requests reach the TPM: the accounts in turn, each account's own in the order they came."""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

T = TypeVar("T")


@dataclass(frozen=True)
class _Waiting(Generic[T]):
    item: T
    since: float


class FairQueue(Generic[T]):
    """Items of accounts. Whoever has a thousand waiting does not hold up who has one."""

    def __init__(self) -> None:
        self._accounts: OrderedDict[Hashable, deque[_Waiting[T]]] = OrderedDict()  # whose turn it is comes first

    def __len__(self) -> int:
        return sum(map(len, self._accounts.values()))

    def put(self, account: Hashable, item: T, now: float) -> None:
        """Adds the account's last item."""
        self._accounts.setdefault(account, deque()).append(_Waiting(item, now))

    def take(self, wait: Callable[[Hashable], float]) -> T | None:
        """The next item of the first account in turn that need not wait; none if there is no such.

        Args:
            wait: how many seconds an account must still wait, 0 for not at all.
        """
        for account, items in self._accounts.items():
            if wait(account) > 0:
                continue
            item = items.popleft().item
            self._accounts.move_to_end(account)
            if not items:
                del self._accounts[account]
            return item
        return None

    def soonest(self, wait: Callable[[Hashable], float]) -> float | None:
        """After how many seconds `take` gives something; none if nothing waits."""
        return min(map(wait, self._accounts), default=None)

    def expired(self, since: Callable[[Hashable], float]) -> list[T]:
        """Takes out all items that wait since ``since(account)`` or longer, oldest first within each account."""
        found: list[T] = []
        for account, items in list(self._accounts.items()):
            limit = since(account)
            while items and items[0].since <= limit:
                found.append(items.popleft().item)
            if not items:
                del self._accounts[account]
        return found
