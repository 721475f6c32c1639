"""Files are read with a cap and written so that a crash leaves the old or the new."""

from __future__ import annotations

import errno
import os
import stat
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from support.processes import run_crippled
from tpm_mtls.errors import PemError, StateError, StorageError, StorageFullError
from tpm_mtls.files import (
    check_private,
    is_there,
    make_file,
    make_folder,
    read_capped,
    refuse_existing,
    remove_file,
    storage_error,
    storage_errors,
    write_atomic,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MAY_NOT = "run it as a user who may, or change the owner or mode"


def test_a_file_up_to_the_limit_is_read(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 100)
    assert read_capped(path, limit=100) == b"x" * 100


def test_what_cannot_be_known_to_be_there_is_an_error_and_not_absent(tmp_path: Path) -> None:
    assert is_there(tmp_path)
    assert not is_there(tmp_path / "absent")
    with pytest.raises(StorageError, match="file name too long"):
        is_there(tmp_path / ("x" * 256))


def test_a_larger_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 101)
    with pytest.raises(PemError, match="is larger than 100 bytes"):
        read_capped(path, limit=100)


def test_a_pipe_is_refused_instead_of_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(StorageError, match=r"cannot read .*pipe: invalid argument"):
        read_capped(tmp_path / "pipe")


def test_a_folder_is_refused_as_a_folder(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="is a directory") as caught:
        read_capped(tmp_path)
    assert caught.value.hint == "that is a folder; name a file"
    assert caught.value.path == str(tmp_path)


def test_a_written_file_has_its_content_and_exactly_its_mode(tmp_path: Path) -> None:
    old = os.umask(0o077)
    try:
        write_atomic(tmp_path / "file", b"new", mode=0o644)
    finally:
        os.umask(old)
    assert (tmp_path / "file").read_bytes() == b"new"
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o644


def test_a_private_file_is_never_readable_by_others_even_with_an_open_umask(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        write_atomic(tmp_path / "file", b"secret", mode=0o600)
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o600


def test_a_full_disk_leaves_the_old_content_and_no_temporary_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    code = (
        "import resource, signal, sys; from pathlib import Path; from tpm_mtls.files import write_atomic\n"
        "from tpm_mtls.errors import StorageFullError\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try: write_atomic(Path(sys.argv[1]), b'n' * 2000)\n"
        "except StorageFullError as error: sys.exit(error.hint)\n"
    )
    assert run_crippled(code, str(path)) == "make room on that file system, then run the command again"
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_is_not_to_be_replaced_is_made_or_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomic(path, b"first", mode=0o600, replace=False)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(StateError, match=r"file exists already and is not overwritten") as caught:
        write_atomic(path, b"second", replace=False)
    assert caught.value.hint == "name another file, or remove that one yourself"
    assert path.read_bytes() == b"first"
    assert path.stat().st_nlink == 1
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_to_nowhere_is_not_replaced_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(StateError, match="exists already"):
        refuse_existing(tmp_path / "link")
    with pytest.raises(StateError, match="exists already"):
        write_atomic(tmp_path / "link", b"x", replace=False)
    assert list(tmp_path.iterdir()) == [tmp_path / "link"]
    refuse_existing(tmp_path / "nowhere")


def test_of_writers_at_the_same_instant_one_wins_and_the_others_are_told(tmp_path: Path) -> None:
    writers = 4
    together = threading.Barrier(writers)

    def write(path: Path, name: bytes) -> bytes | None:
        together.wait(10)
        try:
            write_atomic(path, name, replace=False)
        except StateError:
            return None
        return name

    with ThreadPoolExecutor(writers) as threads:
        for attempt in range(20):
            path = tmp_path / str(attempt)
            outcomes = list(threads.map(write, [path] * writers, (b"%d" % number for number in range(writers))))
            assert [name for name in outcomes if name is not None] == [path.read_bytes()]
    assert len(list(tmp_path.iterdir())) == 20


def test_a_path_through_a_file_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="not a directory"):
        write_atomic(tmp_path / "file" / "below", b"x")


def test_an_unforeseen_error_still_names_the_file(tmp_path: Path) -> None:
    with (
        pytest.raises(StorageError, match=r"cannot read .*: something odd") as caught,
        storage_errors(tmp_path, "read"),
    ):
        raise OSError("Something odd")
    assert caught.value.hint == "check the file system"


def test_enospc_is_a_full_disk(tmp_path: Path) -> None:
    with pytest.raises(StorageFullError), storage_errors(tmp_path, "write"):
        raise OSError(28, "No space left on device")


@pytest.mark.parametrize(
    ("path", "hint"),
    [
        ("/run/tpm-mtls", f"{MAY_NOT}; or name a folder of your own: --run-dir"),
        ("/run/tpm-mtls/health.json", f"{MAY_NOT}; or name a folder of your own: --run-dir"),
        ("/var/lib/tpm-mtls", f"{MAY_NOT}; or name a folder of your own: --state-dir"),
        ("/var/lib/tpm-mtls/identity.json", f"{MAY_NOT}; or name a folder of your own: --state-dir"),
        ("/run/tpm-mtls-of-others", MAY_NOT),
        ("folder", MAY_NOT),
    ],
)
def test_who_may_not_use_a_default_folder_is_told_how_to_name_another(path: str, hint: str) -> None:
    for code in (errno.EACCES, errno.EPERM):
        error = storage_error(OSError(code, os.strerror(code)), Path(path), "make")
        assert (str(error), error.hint) == (f"cannot make {path}: {os.strerror(code).lower()}", hint)


def test_removing_is_idempotent(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    remove_file(tmp_path / "file")
    remove_file(tmp_path / "file")
    assert list(tmp_path.iterdir()) == []


def test_a_new_folder_gets_its_mode_and_an_old_one_keeps_it(tmp_path: Path) -> None:
    make_folder(tmp_path / "a" / "b")
    assert stat.S_IMODE((tmp_path / "a" / "b").stat().st_mode) == 0o750
    (tmp_path / "a" / "b").chmod(0o700)
    make_folder(tmp_path / "a" / "b")
    assert stat.S_IMODE((tmp_path / "a" / "b").stat().st_mode) == 0o700


def test_a_link_to_nowhere_is_no_place_for_a_folder(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(StorageError, match=r"cannot make .*link: file exists"):
        make_folder(tmp_path / "link")
    assert not (tmp_path / "nowhere").exists()


def test_a_folder_that_somebody_else_makes_at_the_same_instant_will_do(tmp_path: Path) -> None:
    quicker = [tmp_path / "raced"]

    def make(event: str, arguments: tuple[object, ...]) -> None:
        if event == "os.mkdir" and quicker and arguments[0] == "raced":
            quicker.pop().mkdir(mode=0o700)

    sys.addaudithook(make)  # for the process's life
    make_folder(tmp_path / "raced")
    assert not quicker
    assert stat.S_IMODE((tmp_path / "raced").stat().st_mode) == 0o700


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match=r"cannot make .*file/folder"):
        make_folder(tmp_path / "file" / "folder")


def test_a_folder_that_may_not_be_written_is_refused_for_an_ordinary_user(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    for parent in tmp_path.parents:
        if parent.stat().st_uid == os.geteuid() and str(parent) != "/":
            parent.chmod(parent.stat().st_mode | 0o011)
    (tmp_path / "closed").mkdir(mode=0o555)
    code = (
        "import os, sys; from pathlib import Path; from tpm_mtls.files import make_folder\n"
        "from tpm_mtls.errors import StorageError\n"
        "if os.geteuid() == 0: os.setuid(65534)\n"
        "try: make_folder(Path(sys.argv[1]))\n"
        "except StorageError as error: sys.exit(str(error))\n"
    )
    assert run_crippled(code, str(tmp_path / "closed")) == f"cannot write to {tmp_path / 'closed'}: permission denied"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_what_root_makes_in_another_users_folder_is_that_users(tmp_path: Path) -> None:
    """So that the services that run as that user can read and replace it."""
    tmp_path.chmod(0o750)
    os.chown(tmp_path, 12345, 54321)
    write_atomic(tmp_path / "replaced", b"old", hand_over=False)
    assert owner(tmp_path / "replaced") == (0, 0, 0o644)
    write_atomic(tmp_path / "replaced", b"new", mode=0o640)
    write_atomic(tmp_path / "new", b"", mode=0o600, replace=False)
    make_file(tmp_path / "lock")
    make_folder(tmp_path / "a" / "b", mode=0o700)
    write_atomic(tmp_path / "a" / "b" / "below", b"", mode=0o600)
    assert {path.name: owner(path) for path in tmp_path.rglob("*")} == {
        "replaced": (12345, 54321, 0o640),
        "new": (12345, 54321, 0o600),
        "lock": (12345, 54321, 0o600),
        "a": (12345, 54321, 0o755),
        "b": (12345, 54321, 0o700),
        "below": (12345, 54321, 0o600),
    }
    make_folder(tmp_path.with_name("beside"), like=tmp_path)
    assert owner(tmp_path.with_name("beside")) == (12345, 54321, 0o750)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
@pytest.mark.parametrize(("uid", "mode"), [(0, 0o750), (12345, 0o1777)], ids=["root's", "everybody's"])
def test_in_a_folder_of_root_or_of_everybody_it_stays_roots(tmp_path: Path, uid: int, mode: int) -> None:
    os.chown(tmp_path, uid, 54321)
    tmp_path.chmod(mode)
    write_atomic(tmp_path / "file", b"")
    make_folder(tmp_path / "folder")
    assert [path.stat().st_uid for path in tmp_path.iterdir()] == [0, 0]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_through_a_symbolic_link_nothing_of_root_is_given_away(tmp_path: Path) -> None:
    """The owner of a folder may put a link, or a hard link, to something of root's wherever root will write."""
    mine, theirs = tmp_path / "mine", tmp_path / "theirs"
    for folder in (mine, theirs):
        folder.mkdir()
    os.chown(theirs, 12345, 12345)
    (mine / "shadow").write_bytes(b"root's")
    (theirs / "folder").symlink_to(mine)
    (theirs / "link").symlink_to(mine / "shadow")
    (theirs / "hard").hardlink_to(mine / "shadow")
    write_atomic(theirs / "folder" / "new", b"")
    make_folder(theirs / "folder")
    make_folder(theirs / "folder" / "below")
    for name in ("link", "hard"):
        make_file(theirs / name)
    assert {path.stat().st_uid for path in (mine, *mine.iterdir())} == {0}
    for name in ("link", "hard"):
        write_atomic(theirs / name, b"new")
    assert {path.stat().st_uid for path in (mine, *mine.iterdir())} == {0}
    assert (mine / "shadow").read_bytes() == b"root's"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_folder_that_its_owner_exchanges_while_root_writes_is_written_where_it_was(
    tmp_path: Path, exchanged: Callable[[Path, Path], None]
) -> None:
    """Not a file of that user in a folder of root's: the user would have written, say, a job of cron's."""
    mine, theirs = tmp_path / "mine", tmp_path / "theirs"
    for folder in (mine, theirs, theirs / "folder"):
        folder.mkdir()
        os.chown(folder, 0 if folder == mine else 12345, 0)
    exchanged(theirs / "folder", mine)
    write_atomic(theirs / "folder" / "file", b"")
    assert (theirs / "folder").is_symlink()
    assert not list(mine.iterdir())
    assert owner(theirs / "folder.old" / "file") == (12345, 0, 0o644)


@pytest.fixture
def exchanged() -> Iterator[Callable[[Path, Path], None]]:
    """``exchanged(FOLDER, TARGET)``: at the first rename, FOLDER becomes ``FOLDER.old`` and a link to TARGET."""
    waiting: list[tuple[Path, Path]] = []

    def exchange(event: str, arguments: tuple[object, ...]) -> None:
        if event == "os.rename" and waiting and str(arguments[1]) == "file":
            folder, target = waiting.pop()
            folder.rename(folder.with_name("folder.old"))
            folder.symlink_to(target)

    sys.addaudithook(exchange)  # for the process's life
    yield lambda folder, target: waiting.append((folder, target))
    waiting.clear()


def owner(path: Path) -> tuple[int, int, int]:
    """User, group and mode of ``path`` itself."""
    status = path.lstat()
    return status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)


def test_a_private_file_passes_and_one_that_others_read_does_not(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_bytes(b"")
    path.chmod(0o600)
    check_private(path)
    path.chmod(0o640)
    with pytest.raises(StorageError, match=r"can be read by other users \(mode 0640\)") as caught:
        check_private(path)
    assert caught.value.hint == f"chmod 600 {path}"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_private_file_of_another_user_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_bytes(b"")
    path.chmod(0o600)
    os.chown(path, 12345, 0)
    with pytest.raises(StorageError, match=r"belongs to another user \(uid 12345\)"):
        check_private(path)
    os.chown(tmp_path, 12345, 0)  # a service's folder, which root administers
    check_private(path)
    os.chown(tmp_path, 12346, 0)
    with pytest.raises(StorageError, match=r"belongs to another user \(uid 12345\)"):
        check_private(path)


def test_a_systemd_credential_is_private_whatever_its_mode_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its mode may show the mask of the access control list by which the unit's user is let in."""
    credential = tmp_path / "token"
    credential.write_text("secret")
    credential.chmod(0o440)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    check_private(credential)

    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path / "another"))
    with pytest.raises(StorageError, match="can be read by other users"):
        check_private(credential)
