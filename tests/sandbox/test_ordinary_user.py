"""The embedded executor as an ordinary user without any capability, and beside other users.

Needs root to become that user. An interpreter below a folder that only root may enter is
shown to the user in a private mount namespace.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from agent_r1.sandbox.conformance import cases

REPOSITORY = Path(__file__).parents[2]
NOBODY = 65534

BECOME_USER = """
import os, sys
from agent_r1.sandbox.guest import linux
base, user = sys.base_prefix, int(sys.argv[1])
try:
    linux.unshare(linux.CLONE_NEWNS)
except OSError as error:
    sys.exit(f"cannot become a user: {error}")
linux.mount("", "/", "", linux.MS_REC | linux.MS_PRIVATE)
closed = [p for p in map(str, __import__("pathlib").Path(base).parents)
          if not os.stat(p).st_mode & 1]
if closed:
    top = closed[-1]
    linux.mount("none", "/mnt", "tmpfs", 0)
    os.mkdir("/mnt/base")
    linux.mount(base, "/mnt/base", "", linux.MS_BIND)
    linux.mount("none", top, "tmpfs", 0, "mode=0755")
    os.makedirs(base)
    linux.mount("/mnt/base", base, "", linux.MS_BIND)
    linux.umount("/mnt")
if user:
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)
    linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
os.execv(sys.executable, [sys.executable, "-c", sys.argv[2], *sys.argv[3:]])
"""

RUN_CASES = """
import os, sys
assert os.getuid() != 0
from agent_r1.sandbox import EmbeddedExecutor
from agent_r1.sandbox.conformance import run_conformance
with EmbeddedExecutor(isolation=sys.argv[1]) as executor:
    report = run_conformance(executor, only=sys.argv[2:] or None)
print(report.text())
sys.exit(1 if report.failures or not report.results else 0)
"""

QUICK = [
    *("print", "stdin", "traceback", "files", "multiprocessing", "numpy", "bash", "seeded"),
    *("session_keeps", "kill_everything", "kill_parent", "init_memory", "init_environment"),
    *("limit_init", "renice_all", "mount", "unshare_user", "become_root", "no_new_privileges"),
    *("connect_loopback", "nothing_left", "memory_is_clean", "forged_output", "daemon"),
    *("other_processes", "descriptors", "endless_loop", "fork_bomb", "output_capped"),
    *("deep_tree", "closed_tree", "limits_of_its_own", "streams_by_name", "temporary_folder"),
]


WITHOUT_NAMESPACES = {
    *("other_processes", "nothing_left", "no_new_privileges", "kill_everything"),
    *("limits_of_its_own", "temporary_folder"),
}
NOT_PROMISED = {  # by a weaker level
    "landlock": {*WITHOUT_NAMESPACES, "multiprocessing", "memory_is_clean"},
    "process": {*WITHOUT_NAMESPACES, "kill_parent", "daemon"},
}
NO_SOCKETS = {"connect_loopback"}  # the call that makes one is refused already

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


def as_nobody(script: str, *arguments: str, user: int = NOBODY) -> subprocess.CompletedProcess[str]:
    """Run a Python script as a user who has nothing; 0: as root, with the same view."""
    if not os.stat(REPOSITORY).st_mode & 1:
        pytest.skip("this checkout is closed to other users")
    command = [sys.executable, "-c", BECOME_USER, str(user), script, *arguments]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        command, cwd="/", env=environment, capture_output=True, text=True, timeout=250, check=False
    )
    if "become a user" in done.stderr:
        pytest.skip("no private mount namespace here")
    return done


@pytest.mark.parametrize("names", [QUICK, pytest.param([], marks=pytest.mark.slow)], ids=len)
def test_every_guarantee_holds_as_an_ordinary_user(names: list[str]) -> None:
    assert set(names) <= {case.name for case in cases()}
    done = as_nobody(RUN_CASES, "strict", *names)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("level", sorted(NOT_PROMISED))
def test_what_a_weaker_level_promises(level: str) -> None:
    names = set(QUICK) - NOT_PROMISED[level] - NO_SOCKETS
    if level == "process":  # the host's processes are not ours to experiment with
        names -= {"renice_all", "init_memory", "init_environment", "limit_init"}
    done = as_nobody(RUN_CASES, level, *sorted(names))
    assert done.returncode == 0, done.stdout + done.stderr


NEIGHBOURS = """
import concurrent.futures, sys
from agent_r1.sandbox import EmbeddedExecutor, RunRequest
sleeper = RunRequest(code="import time; time.sleep(1); print('whole')")
with (
    EmbeddedExecutor(isolation=sys.argv[1]) as one,
    EmbeddedExecutor(isolation=sys.argv[2]) as other,
    concurrent.futures.ThreadPoolExecutor(16) as threads,
):
    runs = [threads.submit(one.run, sleeper) for _ in range(4)]
    for _ in range(4):
        quick = [RunRequest(code=code) for code in ("print(1)", "import numpy")]
        quick.append(RunRequest(code="echo 1", language="bash"))
        quick += [RunRequest(code="import os; os.kill(-1, 9)")] * 8
        list(threads.map(other.run, quick))
    for run in runs:
        print(run.result().status, run.result().stdout)
"""


@pytest.mark.parametrize("level", ["landlock", "process"])
@pytest.mark.parametrize("beside", ["strict", "landlock", "process"])
def test_executors_without_namespaces_end_only_their_own_programs(level: str, beside: str) -> None:
    """As root they end what a program left by its user id: two must never share one."""
    done = as_nobody(NEIGHBOURS, beside, level, user=0)
    assert done.stdout == "success whole\n\n" * 4, done.stdout + done.stderr


CLOSED = """
import os, tempfile
from agent_r1.sandbox.guest import trees
top = tempfile.mkdtemp()
os.makedirs(f"{top}/a/b/c/d")
open(f"{top}/a/b/c/file", "w").close()
for below in ("a/b/c/d", "a/b/c", "a/b", "a", ""):
    os.chmod(f"{top}/{below}", 0)
trees.remove(top)
print(os.path.exists(top))
"""


def test_folders_that_are_closed_one_in_the_other_are_removed() -> None:
    done = as_nobody(CLOSED)
    assert done.stdout == "False\n", done.stdout + done.stderr


BOTH_KILLED = """
import os, signal, subprocess, sys, tempfile, time
host = '''
import time
from agent_r1.sandbox import EmbeddedExecutor, RunRequest
executor = EmbeddedExecutor(1, isolation="process")
executor.run(RunRequest(code="open('x', 'w').write('left')"))
pool = next(pool for pool in executor._pools.values() if pool._process is not None)
print(pool._process.pid, flush=True)
time.sleep(100)
'''
with tempfile.TemporaryDirectory() as folder:
    os.environ["TMPDIR"] = tempfile.tempdir = folder
    trainer = subprocess.Popen([sys.executable, "-c", host], stdout=subprocess.PIPE, text=True)
    supervisor = int(trainer.stdout.readline())
    trainer.kill()
    os.kill(supervisor, signal.SIGKILL)
    trainer.wait()
    before = len(os.listdir(folder))
    from agent_r1.sandbox import scratch
    until = time.monotonic() + 60
    while os.listdir(folder) and time.monotonic() < until:  # their processes are ending
        scratch.sweep()
    print(before, os.listdir(folder))
"""


def test_what_a_killed_trainer_and_its_killed_supervisor_left_is_removed() -> None:
    """With the default level there is nothing: what is mounted ends with its namespace."""
    done = as_nobody(BOTH_KILLED)
    assert done.stdout == "1 []\n", done.stdout + done.stderr


DENIED = """
import os
from agent_r1.errors import SandboxUnavailable
from agent_r1.sandbox import EmbeddedExecutor
from agent_r1.sandbox.guest import linux
user = os.getuid()
linux.unshare(linux.CLONE_NEWUSER)
for name, text in (("uid_map", f"0 {user} 1"), ("setgroups", "deny"), ("gid_map", f"0 {user} 1")):
    open(f"/proc/self/{name}", "w").write(text)
open("/proc/sys/user/max_user_namespaces", "w").write("0")
try:
    EmbeddedExecutor().start()
except SandboxUnavailable as error:
    print(error)
"""


def test_a_denied_primitive_is_named_with_the_remedy() -> None:
    done = as_nobody(DENIED)
    assert "cannot guarantee namespaces of its own" in done.stdout, done.stdout + done.stderr
    assert "isolation='landlock'" in done.stdout
