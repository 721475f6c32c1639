"""Using a key by its policy: tries the ways through it, the one that worked last first."""

from __future__ import annotations

from tpm_mtls_relay import errors
from tpm_mtls_relay.errors import ConnectionLostError, KeyGoneError, RelayError
from tpm_mtls_relay.messages.commands import POLICY_AUTHORIZE, POLICY_NV, POLICY_PCR
from tpm_mtls_relay.policies.approvals import Approvals
from tpm_mtls_relay.policies.file import BANKS, Pcr
from tpm_mtls_relay.policies.folders import PolicyFolders
from tpm_mtls_relay.policies.paths import Approval
from tpm_mtls_relay.policies.pcr_banks import allocated_pcrs
from tpm_mtls_relay.policies.session import PolicySession, TpmRefusalError
from tpm_mtls_relay.policies.ways import Ways, read_ways

TYPE_CHECKING = False
if TYPE_CHECKING:
    from tpm_mtls_relay.loaded.public_area import PublicArea
    from tpm_mtls_relay.messages.wire import Exchange
    from tpm_mtls_relay.policies.paths import Path, Step
    from tpm_mtls_relay.policies.request import SignRequest

# TPM 2.0 Library part 2 rev 1.59, 6.6.3; bit 6 says that a parameter is meant, bits 8 to 11 which one
_POLICY_FAIL = 0x99D  # TPM_RC_POLICY_FAIL for session 1: what TPM2_Sign answers to the wrong PCRs
_PCR_CHANGED = 0x128
_POLICY = 0x126
_NV_UNINITIALIZED = 0x14A
_VALUE_1 = 0x1C4
_VALUE_4 = 0x4C4
_HASH_2, _VALUE_2 = 0x2C3, 0x2C4
_HANDLES = {0x18B, 0x28B}

_PATIENCE = 3
"""Attempts, when a PCR changes in the midst of one: Linux' IMA extends PCR 10 for each new file that it measures."""

_IMPORTANCE = [
    errors.POLICY_NOT_SATISFIED,
    errors.POLICY_BANK_MISSING,
    errors.POLICY_OUTDATED,
    errors.POLICY_DAMAGED,
    errors.POLICY_SIGNATURE,
]
"""Of several ways that failed, the last in this list is told: that the PCRs differ is usual for most ways."""


class PolicyUse:
    """Signs with keys by their policies, which lie in ``folders``."""

    def __init__(self, exchange: Exchange, folders: list[str]) -> None:
        self._exchange = exchange
        self._folders = PolicyFolders(folders)
        self._approvals = Approvals(exchange)
        self._ways: dict[bytes, Ways] = {}

    def sign(self, key: PublicArea, request: SignRequest) -> bytes:
        """The response to ``request``, authorized by ``key``'s policy.

        Raises:
            RelayError: POLICY_MISSING, DAMAGED, NOT_THE_KEYS, UNSIGNED, SIGNATURE, OUTDATED, BANK_MISSING or
                NOT_SATISFIED; or the TPM's own response code.
        """
        ways = self._ways_of(key)
        try:
            return self._with_patience(key, ways, request)
        except RelayError as error:
            self._ways.pop(key.name, None)  # a file that was changed in place is read again
            if error.code in {errors.POLICY_NOT_SATISFIED, _POLICY_FAIL} and self._lacks_banks(ways.paths):
                raise RelayError("the TPM has no such PCR bank", errors.POLICY_BANK_MISSING) from error
            raise

    def _with_patience(self, key: PublicArea, ways: Ways, request: SignRequest) -> bytes:
        remaining, connections = _PATIENCE, 2
        while True:
            try:
                return self._try_all(key, ways, request)
            except TpmRefusalError as error:
                remaining -= 1
                if error.code != _PCR_CHANGED or not remaining:
                    raise
            except (ConnectionLostError, KeyGoneError):
                # it may be the session that went with the connection, and a key at a persistent handle stays
                connections -= 1
                if not connections:
                    raise

    def _try_all(self, key: PublicArea, ways: Ways, request: SignRequest) -> bytes:
        obstacles = [ways.problem] if ways.problem else []
        session = PolicySession(self._exchange, key.name)
        try:
            for path in ways.paths:
                session.start()
                obstacle = self._walk(session, path)
                if obstacle is None:
                    ways.prefer(path)
                    return session.sign(request)
                obstacles.append(obstacle)
        finally:
            session.close()
        raise max(obstacles, key=lambda obstacle: _IMPORTANCE.index(obstacle.code))

    def _walk(self, session: PolicySession, path: Path) -> RelayError | None:
        """Asserts all of ``path``; returns what kept it from that, if another way may do."""
        for step in path:
            try:
                self._assert_step(session, step)
            except TpmRefusalError as error:
                obstacle = _obstacle(step, error)
                if obstacle is None:
                    raise
                return obstacle
            except RelayError as error:
                if error.code not in _IMPORTANCE:
                    raise
                return error
        return None

    def _assert_step(self, session: PolicySession, step: Step) -> None:
        if not isinstance(step.subject, Approval):
            session.assert_step(step)
            return
        is_old = self._approvals.knows(step.subject)
        try:
            session.assert_step(step, self._approvals.ticket(step.subject))
        except TpmRefusalError as error:
            if error.code != _VALUE_4 or not is_old:
                raise
            self._approvals.forget(step.subject)  # the TPM was cleared
            session.assert_step(step, self._approvals.ticket(step.subject))

    def _ways_of(self, key: PublicArea) -> Ways:
        ways = self._ways.get(key.name)
        if ways is None or ways.state != self._folders.state():
            ways = self._ways[key.name] = read_ways(key, self._folders)
        return ways

    def _lacks_banks(self, ways: list[Path]) -> bool:
        """Whether each way asks for a PCR that the TPM does not have: it takes that for one without a value."""
        selected = [[step.subject for step in path if isinstance(step.subject, Pcr)] for path in ways]
        if not all(selected):
            return False
        try:
            allocated = allocated_pcrs(self._exchange)
        except RelayError:
            return False  # the refusal that led here says more
        return all(any(set(pcr.pcrs) - allocated.get(BANKS[pcr.bank][0], set()) for pcr in path) for path in selected)


def _obstacle(step: Step, error: TpmRefusalError) -> RelayError | None:
    """What it means that the TPM refused ``step``; none if it says nothing about the policy."""
    if step.code == POLICY_NV and error.code == _POLICY:
        return RelayError("the counter is beyond the signed policy's version", errors.POLICY_OUTDATED)
    if step.code == POLICY_NV and error.code in {*_HANDLES, _NV_UNINITIALIZED}:
        return RelayError("the counter is not there, or was never written", errors.POLICY_NOT_SATISFIED)
    if step.code == POLICY_PCR and error.code in {_HASH_2, _VALUE_2}:
        return RelayError("the TPM has no such PCR bank", errors.POLICY_BANK_MISSING)
    if step.code == POLICY_AUTHORIZE and error.code == _VALUE_4:
        return RelayError("the TPM does not take a signature that it has verified", errors.POLICY_SIGNATURE)
    if error.code == _VALUE_1:
        return RelayError("the PCRs have other values", errors.POLICY_NOT_SATISFIED)
    return None
