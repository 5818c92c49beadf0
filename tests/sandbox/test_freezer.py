"""Sessions held by the freezers of both versions of control groups, and by signals.

Which of them this machine offers is what :func:`freezer.find` looks for; here each is taken by
name, so that none goes untested because another one is there.
"""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_ordinary_user import BECOME_USER, RUN_CASES, as_nobody

from agent_r1.errors import SandboxError
from agent_r1.sandbox import EmbeddedExecutor, RunRequest, RunStatus, cgroups, freezer
from agent_r1.sandbox.conformance import Case, Feature, cases
from agent_r1.sandbox.conformance.between import _ALARM, _CLOCK
from agent_r1.sandbox.guest.freezer import Freezer

REPOSITORY = Path(__file__).parents[2]
SESSIONS = [case for case in cases() if Feature.SESSIONS in case.needs]
FILES = {1: "freezer.state", 2: "cgroup.freeze"}
HELD = {1: "FROZEN", 2: "frozen 1"}


def hierarchy(version: int) -> freezer.Hierarchy:
    """Where groups of this version can be made, or skip."""
    kind, name = ("cgroup", "freezer") if version == 1 else ("cgroup2", "")
    own = dict(cgroups.own_groups())
    for mounted, where, options in cgroups.mounts():
        if mounted == kind and name in own and (not name or name in options):
            found = freezer.Hierarchy(version, Path(where + own[name]))
            if freezer._usable(found):
                return found
    pytest.skip(f"no freezer of version {version} for this user")


@pytest.fixture(scope="module", params=[0, 1, 2], ids=["signals", "version 1", "version 2"])
def executor(request: pytest.FixtureRequest) -> Iterator[EmbeddedExecutor]:
    found = hierarchy(request.param) if request.param else None
    with pytest.MonkeyPatch.context() as patch, EmbeddedExecutor(workers=4) as executor:
        patch.setattr(freezer, "find", lambda: found)
        yield executor


def run(executor: EmbeddedExecutor, code: str, **options: Any) -> Any:
    return executor.run(RunRequest(code=textwrap.dedent(code), **options))


def wait_until(condition: Any, seconds: float = 20.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return bool(condition())


def alive(pids: list[int]) -> list[int]:
    """Those that have not ended; who is over and not yet waited for has."""
    found = []
    for pid in pids:
        try:
            with open(f"/proc/{pid}/stat", "rb") as file:
                state = file.read().rpartition(b")")[2].split()[0]
        except OSError:
            continue
        if state not in (b"Z", b"X"):
            found.append(pid)
    return found


# --- what the suite says of sessions, held in every way ------------------------------------


@pytest.mark.parametrize("case", SESSIONS, ids=str)
def test_conformance(case: Case, executor: EmbeddedExecutor) -> None:
    case.check(executor)


# --- what only a freezer can do --------------------------------------------------------------


class Frozen:
    """An executor that uses the freezer of one version."""

    def __init__(self, version: int, executor: EmbeddedExecutor, place: Path) -> None:
        self.version = version
        self.executor = executor
        self.place = place
        self.before = set(self.tiers())  # of other executors of this process

    def tiers(self) -> list[Path]:
        return list(self.place.glob(f"agent-r1-{os.getpid()}-*"))

    def groups(self) -> list[Path]:
        """Those of sessions."""
        return [group for tier in set(self.tiers()) - self.before for group in tier.glob("*/")]


@pytest.fixture(params=[1, 2], ids=["version 1", "version 2"])
def frozen(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Frozen]:
    found = hierarchy(request.param)
    monkeypatch.setattr(freezer, "find", lambda: found)
    with EmbeddedExecutor(workers=2) as executor:
        yield Frozen(request.param, executor, found.folder)


def test_programs_without_a_session_have_no_group_for_it(frozen: Frozen) -> None:
    for _ in range(2):
        assert run(frozen.executor, "print(1)").stdout == "1\n"
    assert not frozen.groups() and not set(frozen.tiers()) - frozen.before


def test_all_of_the_session_is_frozen_and_nothing_else(frozen: Frozen) -> None:
    code = """
    import os, time
    reader, writer = os.pipe()
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.write(writer, b"x")
            while True:
                pass
        time.sleep(100)
    os.read(reader, 1)
    """
    run(frozen.executor, code, session="s")
    (group,) = frozen.groups()
    state = group / ("freezer.state" if frozen.version == 1 else "cgroup.events")
    assert HELD[frozen.version] in state.read_text()
    members = (group / "cgroup.procs").read_text().split()
    assert len(members) == 3
    for pid in members:
        status = Path(f"/proc/{pid}/status").read_text()
        (numbers,) = [line.split()[1:] for line in status.splitlines() if line[:6] == "NSpid:"]
        assert numbers[-1] != "1", "init must go on to answer the host"
    assert run(frozen.executor, "print(1)", session="s").stdout == "1\n"
    frozen.executor.close_session("s")
    assert wait_until(lambda: not alive([int(pid) for pid in members]))


def test_those_that_wake_all_others_are_held_and_keep_their_session(frozen: Frozen) -> None:
    """Signals can but end it: what they stopped is woken at once."""
    run(frozen.executor, f"{_CLOCK}{_ALARM}await_work(); kept = 7", session="s")
    for _ in range(3):
        time.sleep(0.3)
        result = run(frozen.executor, "print(kept)", session="s")
        assert (result.status, result.stdout) == (RunStatus.SUCCESS, "7\n"), result.stderr


def test_a_program_does_not_notice_that_it_was_held(frozen: Frozen) -> None:
    code = """
    import os, signal, subprocess
    seen = []
    for number in (signal.SIGCONT, signal.SIGCHLD):
        signal.signal(number, lambda number, frame: seen.append(number))
    child = subprocess.Popen(["/usr/bin/sleep", "100"])
    """
    run(frozen.executor, code, session="s")
    time.sleep(0.2)
    ask = "print(seen, os.waitpid(child.pid, os.WNOHANG | os.WUNTRACED | os.WCONTINUED))"
    assert run(frozen.executor, ask, session="s").stdout == "[] (0, 0)\n"


def test_the_files_of_the_group_are_out_of_reach(frozen: Frozen) -> None:
    code = """
    import os
    found = [name for name in os.listdir("/proc/self/fd") if int(name) > 2]
    places = []
    for name in found:
        try:
            places.append(os.readlink(f"/proc/self/fd/{name}"))
        except OSError:
            pass
    print([place for place in places if "group" in place or "freezer" in place])
    try:
        print(os.listdir("/proc/1/fd"))
    except OSError as error:
        print(type(error).__name__)
    print(os.path.exists("/sys"))
    """
    for _ in range(2):
        told = run(frozen.executor, code, session="s").stdout
        assert told in ("[]\nPermissionError\nFalse\n", "[]\nFileNotFoundError\nFalse\n")


def test_a_session_whose_init_is_killed_ends_with_it(frozen: Frozen) -> None:
    run(frozen.executor, "x = 1", session="s")
    (group,) = frozen.groups()
    members = [int(pid) for pid in (group / "cgroup.procs").read_text().split()]
    status = Path(f"/proc/{members[0]}/status").read_text()
    init = int(status.partition("PPid:")[2].split()[0])
    os.kill(init, signal.SIGKILL)
    with pytest.raises(SandboxError, match="session 's' is lost"):
        run(frozen.executor, "print(x)", session="s")
    assert wait_until(lambda: not alive([*members, init]))
    assert "NameError" in run(frozen.executor, "print(x)", session="s").stderr
    frozen.executor.close()
    assert wait_until(lambda: not frozen.groups())


def test_a_group_that_cannot_be_made_or_joined_leaves_signals(
    frozen: Frozen, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "no")

    monkeypatch.setattr(freezer.TierFreezer, "add", refuse)
    assert run(frozen.executor, "x = 1\nprint(x)", session="s").stdout == "1\n"
    assert run(frozen.executor, "print(x)", session="s").stdout == "1\n"
    assert not frozen.groups()


# --- init's handle, on plain files -----------------------------------------------------------


@pytest.fixture
def files(tmp_path: Path) -> Iterator[list[int]]:
    names = ("members", "switch", "state")
    descriptors = [os.open(tmp_path / name, os.O_RDWR | os.O_CREAT) for name in names]
    yield descriptors
    for descriptor in descriptors:
        os.close(descriptor)


def test_what_does_not_freeze_in_time_is_not_said_to_be_frozen(files: list[int]) -> None:
    os.write(files[2], b"populated 1\nfrozen 0\n")
    held = Freezer(2, *files)
    assert not held.freeze(time.monotonic() + 0.05)
    os.pwrite(files[2], b"populated 1\nfrozen 1\n", 0)
    assert held.freeze(time.monotonic() + 0.05)
    assert os.pread(files[1], 9, 0) == b"1"
    held.thaw()
    assert os.pread(files[1], 9, 0) == b"0"


def test_version_1_is_not_frozen_while_it_is_freezing(files: list[int]) -> None:
    os.write(files[2], b"FREEZING\n")
    assert not Freezer(1, *files).freeze(time.monotonic() + 0.05)


def test_a_group_that_was_cleared_away_freezes_nothing(files: list[int]) -> None:
    read_only = os.open("/dev/null", os.O_RDONLY)
    try:
        held = Freezer(2, read_only, read_only, files[2])
        assert not held.adopt(os.getpid())
        assert not held.freeze(time.monotonic() + 0.05)
    finally:
        os.close(read_only)


def test_limits_of_a_slot_hold_for_its_session_in_version_2_too() -> None:
    """There the group of the session lies below that of the slot."""
    found = hierarchy(2)
    place = found.folder / cgroups.new_name()
    place.mkdir()
    try:
        slot = cgroups.SlotGroup(2, place, None)
        made = freezer.TierFreezer(found)
        session = made.add(3, slot)
        assert [path.name for path in place.iterdir() if path.is_dir()] == ["session"]
        assert not made.folder.exists()
        assert session.close() and not list(place.glob("*/"))
        slot.forget()
    finally:
        place.rmdir()


# --- whatever is killed, nothing stays frozen ------------------------------------------------

HOST = """
import json, os, sys, time
from pathlib import Path
from agent_r1.sandbox import EmbeddedExecutor, RunRequest, freezer
version, folder, level = int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
freezer.find = lambda: freezer.Hierarchy(version, folder)
executor = EmbeddedExecutor(2, isolation=level)
code = "import os, time\\nif os.fork() == 0:\\n    while True: pass"
def made():
    return list(folder.glob(f"agent-r1-{os.getpid()}-*/*/"))
for number in range(20):  # one that cannot be held in time is ended, on a busy machine
    if len(made()) < 2:
        executor.run(RunRequest(code=code, session=f"session {number}"))
def children(pid):
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for task in tasks for child in task.read_text().split()]
groups = made()
held = [int(pid) for group in groups for pid in (group / "cgroup.procs").read_text().split()]
supervisor, = children(os.getpid())
zygote = children(supervisor)[0]
print(json.dumps({"host": os.getpid(), "supervisor": supervisor, "zygote": zygote, "held": held,
                  "groups": len(groups)}), flush=True)
for _ in sys.stdin:
    print(executor.run(RunRequest(code="print(1)")).stdout, end="", flush=True)
"""


def start(version: int, folder: Path, level: str) -> "subprocess.Popen[str]":
    """A process with two sessions, as root where every user may read the interpreter."""
    where = [str(version), str(folder), level]
    return subprocess.Popen(
        [sys.executable, "-c", BECOME_USER, "0", HOST, *where],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd="/",
        env=os.environ | {"PYTHONPATH": str(REPOSITORY), "PYTHONDONTWRITEBYTECODE": "1"},
    )


def left_after_a_run(host: "subprocess.Popen[str]", pids: list[int]) -> list[int]:
    """What a dead tier left is ended when the tier is next needed and found dead.

    The first run after a kill may still be taken by a slot that does not know of it.
    """
    assert host.stdin is not None and host.stdout is not None
    host.stdin.write("run\n")
    host.stdin.flush()
    assert host.stdout.readline() == "1\n"
    return alive(pids)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can show others its interpreter")
@pytest.mark.parametrize("level", ["strict", "landlock"])
@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(
    "victims",
    [["host"], ["zygote"], ["supervisor"], ["host", "supervisor"]],
    ids="+".join,
)
def test_nothing_stays_frozen_whatever_is_killed(
    victims: list[str], version: int, level: str
) -> None:
    found = hierarchy(version)
    host = start(version, found.folder, level)
    try:
        assert host.stdin is not None and host.stdout is not None
        told = json.loads(host.stdout.readline())
        assert told["groups"] == 2 and len(alive(told["held"])) == 4
        for victim in victims:
            os.kill(told[victim], signal.SIGKILL)
        left = f"agent-r1-{told['host']}-*"
        if "host" not in victims:
            assert wait_until(lambda: not left_after_a_run(host, told["held"])), "still there"
            host.kill()
        host.wait()

        def gone() -> bool:
            freezer._sweep(found)
            return not alive(told["held"]) and not list(found.folder.glob(left))

        assert wait_until(gone)
    finally:
        host.kill()
        host.communicate()


# --- an ordinary user, with a group of his own and without ------------------------------------

DELEGATED = """
import os
from agent_r1.sandbox import freezer
found = freezer.find()
assert found is not None and found.version == 2, found
add, made = freezer.TierFreezer.add, []
freezer.TierFreezer.add = lambda *a: made.append(add(*a)) or made[-1]
"""


def in_a_group_of_his_own(level: str, names: list[str], afterwards: str) -> None:
    """As the user's manager of systemd has one: it and its list of processes belong to him."""
    found = hierarchy(2)
    if os.geteuid() != 0:
        pytest.skip("only root can give a group away")
    group = found.folder / f"delegated-{os.getpid()}"
    group.mkdir()
    try:
        for place in (group, group / "cgroup.procs", group / "cgroup.subtree_control"):
            os.chown(place, 65534, 65534)
        (group / "cgroup.procs").write_text(str(os.getpid()))
        try:
            script = DELEGATED + RUN_CASES.replace("sys.exit(", f"{afterwards}\nsys.exit(")
            done = as_nobody(script, level, *names)
        finally:
            (found.folder / "cgroup.procs").write_text(str(os.getpid()))
        assert done.returncode == 0, done.stdout + done.stderr
    finally:
        assert wait_until(lambda: cgroups.remove(group)), "groups were left"


def test_an_ordinary_user_with_a_group_of_his_own() -> None:
    names = [case.name for case in SESSIONS]
    in_a_group_of_his_own("strict", names, "assert made, 'signals were used'")


def test_programs_that_could_write_to_the_files_of_the_group_are_held_by_signals() -> None:
    in_a_group_of_his_own("process", ["session_keeps", "held_timer"], "assert not made, made")
