"""Who may ask, and how often for the wrong name."""

from __future__ import annotations

import errno
import grp
import os
import pwd
import socket
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.processes import run_crippled
from tpm_mtls.errors import AccessDeniedError, PemError, StorageError, UsageError
from tpm_mtls_agent.requests.access import LIST_LIMIT, OpenAccess, load_allow_list, parse_allow_list
from tpm_mtls_agent.requests.fair_queue import FairQueue
from tpm_mtls_agent.requests.peers import UNKNOWN_CGROUP, Peer, parse_cgroup, peer_of
from tpm_mtls_agent.requests.wrong_names import WrongNames

SO_PEERPIDFD = 77

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tpm_mtls.secrets.protocol import Action

SHOP = Peer(pid=100, uid=1000, gids=(1000, 44), cgroup="/system.slice/docker-1a2b.scope")


def allowed(rules: str, peer: Peer = SHOP, action: Action = "get", name: str = "stripe-key") -> bool:
    try:
        parse_allow_list(rules.encode(), "list").check(peer, action, name)
    except AccessDeniedError:
        return False
    return True


def rule(**members: object) -> str:
    lines = {"actions": ["get"], "names": ["stripe-*"]} | members
    return "[[allow]]\n" + "".join(f"{key} = {value!r}\n" for key, value in lines.items())


def test_without_an_allow_list_who_knows_a_name_may_use_it() -> None:
    access = OpenAccess()

    access.check(SHOP, "del", "anything")
    assert not access.strict


@pytest.mark.parametrize(
    "who",
    [
        {"uid": 1000},
        {"gid": 1000},
        {"gid": 44},
        {"cgroup": "/system.slice/docker-1a2b.scope"},
        {"cgroup": "/system.slice/docker-*.scope"},
        {"cgroup": "/system.slice/docker-????.scope"},
        {"cgroup": "/system.slice/**"},
        {"cgroup": "/**"},
        {"uid": 1000, "gid": 44, "cgroup": "/**"},
    ],
)
def test_a_rule_that_fits_lets_pass(who: dict[str, object]) -> None:
    assert allowed(rule(**who))


@pytest.mark.parametrize(
    "who",
    [
        {"uid": 1001},
        {"gid": 45},
        {"cgroup": "/system.slice"},
        {"cgroup": "/system.slice/docker-.scope"},
        {"cgroup": "/*"},
        {"cgroup": "/system.slice/docker-1a2b.scope/*"},
        {"cgroup": "/other.slice/**"},
        {"uid": 1000, "gid": 45},
        {"uid": 1000, "cgroup": "/other.slice"},
    ],
)
def test_a_rule_for_another_program_does_not(who: dict[str, object]) -> None:
    assert not allowed(rule(**who))


def test_a_program_cannot_put_itself_below_a_star() -> None:
    """Whoever may make control groups below its own could name one like another program's."""
    stars = rule(cgroup="/user.slice/*.service")

    assert allowed(stars, Peer(1, 1000, (1000,), "/user.slice/app.service"))
    assert not allowed(stars, Peer(1, 1000, (1000,), "/user.slice/mine/app.service"))


def test_who_is_in_no_known_control_group_meets_no_rule_about_them() -> None:
    lost = Peer(100, 1000, (1000,), UNKNOWN_CGROUP)

    assert not allowed(rule(cgroup="/**"), lost)
    assert allowed(rule(uid=1000), lost)


@pytest.mark.parametrize("action", ["set", "del"])
def test_another_action_does_not_pass(action: Action) -> None:
    assert not allowed(rule(uid=1000), action=action)
    assert allowed(rule(uid=1000, actions=["set", "get", "del"]), action=action)


@pytest.mark.parametrize(
    ("pattern", "name", "fits"),
    [
        ("stripe-key", "stripe-key", True),
        ("stripe-key", "stripe-key2", False),
        ("stripe-*", "stripe-", True),
        ("stripe-*", "my-stripe-key", False),
        ("*", "two\nlines", True),
        ("*-key", "stripe-key", True),
        ("s*-*y", "stripe-key", True),
        ("s*-*-y", "stripe-key", False),
        ("stripe?key", "stripe-key", True),
        ("stripe-key?", "stripe-key", False),
        ("stripe.key", "stripe-key", False),
        ("[s]tripe-key", "stripe-key", False),
        ("Stripe-key", "stripe-key", False),
        ("a*b*a", "aba", True),
        ("ab*ba", "aba", False),
    ],
)
def test_a_name_must_fit_the_whole_pattern(pattern: str, name: str, fits: bool) -> None:  # noqa: FBT001 - a column
    assert allowed(rule(uid=1000, names=[pattern]), name=name) == fits


def test_one_rule_of_several_is_enough_and_no_rule_is_a_refusal() -> None:
    assert allowed(rule(uid=1) + rule(uid=1000) + rule(uid=2))
    assert not allowed("")


def test_a_long_pattern_costs_no_time_to_speak_of() -> None:
    begin = time.perf_counter()

    assert not allowed(rule(uid=1000, names=["*a" * 50 + "b"]), name="a" * 255)
    assert time.perf_counter() - begin < 1


def test_a_refusal_says_who_asked_and_not_for_what() -> None:
    with pytest.raises(AccessDeniedError, match=r"user 1000, control group /system\.slice.*may not get") as caught:
        parse_allow_list(rule(uid=1).encode(), "list").check(SHOP, "get", "stripe-key")

    assert "stripe" not in f"{caught.value}{caught.value.hint}"


def test_users_and_groups_have_names() -> None:
    root = Peer(1, 0, (0,), "/")

    assert allowed(rule(uid=pwd.getpwuid(0).pw_name, gid=grp.getgrgid(0).gr_name), root)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[[allow]\n", "is no allow-list"),
        ("\xff", "is no allow-list"),
        ("allow = 5", "is no allow-list"),
        ("[[alow]]\nuid = 5", "is no allow-list: .*unknown field"),
        (rule(uid=1000, name="x"), "is no allow-list: .*unknown field"),
        (rule(uid=1000, actions=["read"]), "is no allow-list"),
        (rule(), "rule 1 of list applies to nobody"),
        (rule(uid=1000, actions=[]), "allows nothing"),
        (rule(uid=1000, names=[]), "allows nothing"),
        (rule(uid=1) + rule(uid="no-such-user"), "no 'no-such-user', the user of rule 2 of list"),
        (rule(gid="no-such-group"), "the group of rule 1"),
        (rule(cgroup="system.slice"), "no path of a control group"),
        (rule(cgroup="/**/app"), "no path of a control group"),
    ],
)
def test_a_wrong_list_is_refused_whole(text: str, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        parse_allow_list(text.encode("latin-1"), "list")


def test_a_list_is_private(tmp_path: Path) -> None:
    path = tmp_path / "allow.toml"
    path.write_text(rule(uid=1000))
    path.chmod(0o600)

    assert load_allow_list(path).strict
    path.chmod(0o640)
    with pytest.raises(StorageError, match="can be read by other users"):
        load_allow_list(path)
    with pytest.raises(StorageError, match="no such file"):
        load_allow_list(tmp_path / "none.toml")


def test_a_list_has_a_limit(tmp_path: Path) -> None:
    path = tmp_path / "allow.toml"
    path.write_bytes(b"#" * (LIST_LIMIT + 1))
    path.chmod(0o600)

    with pytest.raises(PemError, match="is larger than"):
        load_allow_list(path)


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[socket.socket, socket.socket]]:
    """An accepted connection and its client."""
    with socket.socket(socket.AF_UNIX) as listening, socket.socket(socket.AF_UNIX) as client:
        listening.bind(str(tmp_path / "socket"))
        listening.listen()
        client.connect(str(tmp_path / "socket"))
        connection, _ = listening.accept()
        with connection:
            yield connection, client


def test_the_kernel_says_who_the_client_is(pair: tuple[socket.socket, socket.socket]) -> None:
    peer = peer_of(pair[0])

    assert (peer.pid, peer.uid, peer.gids[0]) == (os.getpid(), os.geteuid(), os.getegid())
    assert set(os.getgroups()) <= set(peer.gids)
    assert peer.cgroup.startswith("/")


CONNECT = """
import os, socket, sys
client = socket.socket(socket.AF_UNIX); client.connect(sys.argv[1]); print(os.getpid(), flush=True); sys.stdin.read()
"""
OTHER_USER = (
    "import os, socket, sys; os.setgroups(range(5000, 5000 + {count})); os.setgid(4321); os.setuid(4321)\n" + CONNECT
)


def _peer_of_program(folder: Path, program: str, *, gone: bool = False, processes: Path = Path("/proc")) -> Peer:
    """What is known of a process that runs ``program``, which connects; ``gone`` if it ends before it is accepted."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(folder / "socket"))
        (folder / "socket").chmod(0o666)
        listening.listen()
        with subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", program, folder / "socket"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as client:
            assert client.stdout is not None
            pid = int(client.stdout.readline())
            if gone:
                client.communicate("")
                again = processes / str(pid)  # a process of the same number, as far as procfs tells
                again.mkdir()
                (again / "cgroup").write_text("0::/system.slice/somebody-else.service\n")
            connection, _ = listening.accept()
            with connection:
                peer = peer_of(connection, processes=processes)
            client.communicate("")
    assert peer.pid == pid
    return peer


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a process other groups")
@pytest.mark.parametrize(("count", "known"), [(0, 0), (200, 200), (300, 0)])
def test_other_groups_of_the_client_count_as_far_as_they_can_be_known(count: int, known: int) -> None:
    with tempfile.TemporaryDirectory() as name:  # pytest's folders are closed to other users
        Path(name).chmod(0o755)
        peer = _peer_of_program(Path(name), OTHER_USER.format(count=count))

    assert (peer.uid, peer.gids) == (4321, (4321, *range(5000, 5000 + known)))
    assert peer.account == (4321, "")


# the agent's side: it accepts as another user what root's process has connected to
AS_ANOTHER_USER = """
import os, socket, sys
from pathlib import Path
from tpm_mtls_agent.requests.peers import peer_of

listening = socket.socket(socket.AF_UNIX)
listening.bind(sys.argv[1])
listening.listen()
client = os.fork()
if client == 0:
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(sys.argv[1])
    connection.recv(1)
    os._exit(0)
os.setgroups([])
os.setgid(4321)
os.setuid(4321)
connection, _ = listening.accept()
peer = peer_of(connection)
connection.close()
os.waitpid(client, 0)
print(peer.uid, peer.pid == client, peer.cgroup, file=sys.stderr)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_an_agent_that_is_not_root_knows_the_control_groups_of_other_users_programs(tmp_path: Path) -> None:
    own = parse_cgroup(Path("/proc/self/cgroup").read_bytes())

    assert run_crippled(AS_ANOTHER_USER, str(tmp_path / "socket")) == f"0 True {own}"


def test_a_process_that_is_gone_has_no_control_group_though_its_number_may_be_used_again(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()

    assert _peer_of_program(tmp_path, CONNECT, gone=True, processes=tmp_path / "proc").cgroup == UNKNOWN_CGROUP


class OtherSocket(socket.socket):
    """A socket of which some options say something else."""

    says: dict[int, bytes | int]

    def getsockopt(self, level: int, option: int, length: int = 0) -> bytes:  # type: ignore[override]  # one form of it
        said = self.says.get(option, super().getsockopt(level, option, length))
        if isinstance(said, int):
            raise OSError(said, os.strerror(said))
        return said


def test_a_client_in_another_pid_namespace_or_lost_has_no_known_control_group(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    with OtherSocket(fileno=pair[0].detach()) as connection:
        connection.says = {socket.SO_PEERCRED: struct.pack("=iII", 0, 1000, 1000)}
        assert peer_of(connection).cgroup == UNKNOWN_CGROUP
        connection.says = {SO_PEERPIDFD: errno.ESRCH}
        assert peer_of(connection).cgroup == UNKNOWN_CGROUP


def test_an_older_kernel_tells_the_control_group_by_the_number(
    pair: tuple[socket.socket, socket.socket], tmp_path: Path
) -> None:
    known = peer_of(pair[0])
    with OtherSocket(fileno=pair[0].detach()) as connection:
        connection.says = {SO_PEERPIDFD: errno.ENOPROTOOPT}
        assert peer_of(connection) == known
        if os.geteuid() == 0:
            another = tmp_path / str(os.getpid())  # a process of the same number and another user
            another.mkdir()
            (another / "cgroup").write_text("0::/system.slice/somebody-else.service\n")
            assert peer_of(connection, processes=tmp_path).cgroup == "/system.slice/somebody-else.service"
            os.chown(another, 4321, 4321)
            assert peer_of(connection, processes=tmp_path).cgroup == UNKNOWN_CGROUP


@pytest.mark.parametrize(
    ("text", "cgroup"),
    [
        ("0::/system.slice/app.service\n", "/system.slice/app.service"),
        ("0::/\n", "/"),
        ("1:name=systemd:/system.slice/app.service\n0::/\n", "/system.slice/app.service"),
        ("12:pids:/x\n1:name=systemd:/docker/1a2b\n", "/docker/1a2b"),
        ("1:name=systemd:/a\n0::/b\n", "/b"),
        ("0::/gone.scope (deleted)\n", "/gone.scope (deleted)"),
        ("2:cpu:/x\n", UNKNOWN_CGROUP),
        ("", UNKNOWN_CGROUP),
        ("0::relative\n", UNKNOWN_CGROUP),
    ],
)
def test_the_control_group_is_version_2s_or_systemds(text: str, cgroup: str) -> None:
    assert parse_cgroup(text.encode()) == cgroup


def test_a_control_group_of_any_bytes_can_be_logged() -> None:
    parse_cgroup(b"0::/\xff\xfe\n").encode()


def test_roots_containers_have_a_share_each_and_other_users_one() -> None:
    first, second = Peer(1, 0, (0,), "/docker/a"), Peer(2, 0, (0,), "/docker/b")
    third, fourth = Peer(3, 1000, (0,), "/user/a"), Peer(4, 1000, (0,), "/user/b")

    assert first.account != second.account
    assert third.account == fourth.account


def test_the_first_wrong_names_are_free_and_then_they_come_slowly() -> None:
    wrong = WrongNames(free=3, interval=10)
    now = 1000.0
    for _ in range(3):
        assert wrong.wait("a", now) == 0
        wrong.add("a", now)

    assert wrong.wait("a", now) == 10
    assert wrong.wait("a", now + 9) == 1
    assert wrong.wait("a", now + 10) == 0
    wrong.add("a", now + 10)
    assert wrong.wait("a", now + 10) == 10
    assert wrong.wait("b", now) == 0


def test_after_a_while_all_is_forgiven() -> None:
    wrong = WrongNames(free=3, interval=10)
    for _ in range(3):
        wrong.add("a", 0)

    later = 31.0
    for _ in range(3):
        assert wrong.wait("a", later) == 0
        wrong.add("a", later)
    assert wrong.wait("a", later) > 0


@given(st.lists(st.floats(0, 5), max_size=200))
def test_no_account_gets_more_than_its_budget(pauses: list[float]) -> None:
    free, interval = 5, 10.0
    wrong, now, asked = WrongNames(free=free, interval=interval), 0.0, 0
    for pause in pauses:
        now += pause
        if wrong.wait("a", now) <= 0:
            wrong.add("a", now)
            asked += 1

    assert asked <= free + now / interval + 1e-6


def test_memory_is_bounded_and_who_comes_when_it_is_full_shares_a_budget() -> None:
    wrong = WrongNames(free=2, interval=10, accounts=3)
    for number in range(100):
        wrong.add(number, 0)

    assert len(wrong) == 3
    assert wrong.wait(0, 0) == 0  # its own budget: one of two spent
    assert wrong.wait(1000, 0) > 0  # a stranger, after 97 of them
    assert wrong.wait(1000, 10_000) == 0
    wrong.add(1000, 10_000)  # by then the others are forgotten
    assert len(wrong) == 1


def test_accounts_take_turns_and_each_ones_items_keep_their_order() -> None:
    queue: FairQueue[str] = FairQueue()
    for item in ("a1", "a2", "a3", "b1", "c1", "b2"):
        queue.put(item[0], item)

    assert [queue.take(lambda _: 0) for _ in range(7)] == ["a1", "b1", "c1", "a2", "b2", "a3", None]
    assert len(queue) == 0
    assert queue.soonest(lambda _: 0) is None


def test_an_account_that_must_wait_holds_up_nobody() -> None:
    queue: FairQueue[str] = FairQueue()
    for item in ("a1", "b1", "b2"):
        queue.put(item[0], item)
    waits = {"a": 5.0, "b": 0.0}

    assert [queue.take(lambda account: waits[str(account)]) for _ in range(3)] == ["b1", "b2", None]
    assert queue.soonest(lambda account: waits[str(account)]) == 5


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["put", "take", "remove"])), max_size=80))
def test_nothing_is_lost_or_given_twice(steps: list[tuple[str, str]]) -> None:
    queue: FairQueue[tuple[str, int]] = FairQueue()
    waiting: dict[str, list[tuple[str, int]]] = {"a": [], "b": [], "c": []}
    for number, (account, step) in enumerate(steps):
        if step == "put":
            queue.put(account, (account, number))
            waiting[account].append((account, number))
        elif step == "remove" and waiting[account]:
            queue.remove(account, waiting[account].pop())
        elif step == "take":
            taken = queue.take(lambda _: 0)
            assert (taken is None) == (not any(waiting.values()))
            if taken is not None:
                assert waiting[taken[0]].pop(0) == taken
        assert len(queue) == sum(map(len, waiting.values()))
