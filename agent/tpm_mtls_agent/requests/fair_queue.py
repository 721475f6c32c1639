"""In which order requests reach the TPM: the accounts in turn, each account's own in the order they came."""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

T = TypeVar("T")


class FairQueue(Generic[T]):
    """Items of accounts. Whoever has a thousand waiting does not hold up who has one."""

    def __init__(self) -> None:
        self._accounts: OrderedDict[Hashable, deque[T]] = OrderedDict()  # whose turn it is comes first

    def __len__(self) -> int:
        return sum(map(len, self._accounts.values()))

    def put(self, account: Hashable, item: T) -> None:
        """Adds the account's last item."""
        self._accounts.setdefault(account, deque()).append(item)

    def take(self, wait: Callable[[Hashable], float]) -> T | None:
        """The next item of the first account in turn that need not wait; none if there is no such.

        Args:
            wait: how many seconds an account must still wait, 0 for not at all.
        """
        for account, items in self._accounts.items():
            if wait(account) > 0:
                continue
            item = items.popleft()
            self._accounts.move_to_end(account)
            if not items:
                del self._accounts[account]
            return item
        return None

    def soonest(self, wait: Callable[[Hashable], float]) -> float | None:
        """After how many seconds `take` gives something; none if nothing waits."""
        return min(map(wait, self._accounts), default=None)

    def remove(self, account: Hashable, item: T) -> None:
        """Takes out an item that still waits."""
        self._accounts[account].remove(item)
        if not self._accounts[account]:
            del self._accounts[account]
