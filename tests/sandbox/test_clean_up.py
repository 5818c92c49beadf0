"""What programs and killed processes leave is taken away, and what is in the way is not."""

import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

import msgspec
import pytest

from agent_r1.sandbox import EmbeddedExecutor, RunRequest, embedded, scratch
from agent_r1.sandbox.base import RunResult, RunStatus
from agent_r1.sandbox.exchange import SlotLost
from agent_r1.sandbox.guest import trees

REPOSITORY = Path(__file__).parents[2]
PACKAGES = os.path.dirname(os.path.dirname(msgspec.__file__))


def output_of(script, executable=sys.executable):
    """What a script prints that can import this project and its dependencies."""
    variables = os.environ | {"PYTHONPATH": f"{REPOSITORY}:{PACKAGES}"}
    command = [executable, "-c", script]
    done = subprocess.run(command, env=variables, stdout=subprocess.PIPE, text=True, check=False)
    return done.stdout


# --- trees ----------------------------------------------------------------------------------


def make_deep(folder, depth):
    here = os.open(folder, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(os.open("file", os.O_CREAT, dir_fd=here))
    os.close(here)


def test_a_tree_of_any_depth_is_removed(tmp_path):
    top = tmp_path / "top"
    top.mkdir()
    make_deep(top, 5000)
    trees.remove(str(top))
    assert not top.exists()


def test_links_are_removed_and_not_followed(tmp_path):
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "file").write_text("x")
    top = tmp_path / "top"
    (top / "a").mkdir(parents=True)
    (top / "a" / "link").symlink_to(kept)
    (top / "b").symlink_to(kept)
    (top / "a").chmod(0)
    trees.remove(str(top))
    trees.remove(str(tmp_path / "absent"))
    assert not top.exists() and (kept / "file").read_text() == "x"


# --- scratch folders ------------------------------------------------------------------------


def test_a_folder_of_the_living_is_left_and_of_the_dead_removed(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    alive = scratch.make()
    dead = scratch.make()
    os.close(dead.lock)
    (Path(dead.path) / "left").mkdir()
    scratch.sweep()
    assert os.path.exists(alive.path) and not os.path.exists(dead.path)
    alive.remove()
    assert not os.listdir(tmp_path)


# --- an interpreter below /tmp --------------------------------------------------------------

BELOW = """
from agent_r1.sandbox import EmbeddedExecutor, RunRequest
code = '''
import os, subprocess, sys
print(os.path.exists('/tmp/left'))
open('/tmp/left', 'w').write('x')
print(subprocess.run([sys.executable, '-c', 'print(open("/tmp/left").read())'],
                     capture_output=True, text=True).stdout, end='')
try:
    open(os.path.join(sys.executable + '-owned'), 'w')
except OSError:
    print('read-only')
'''
with EmbeddedExecutor(workers=1) as executor:
    for _ in range(3):
        result = executor.run(RunRequest(code=code))
        print(result.stdout.split(), result.stderr)
"""


@pytest.mark.parametrize("parent", ["/tmp", "/dev/shm"])
def test_an_interpreter_below_a_private_folder_is_shown_in_it(parent):
    with tempfile.TemporaryDirectory(dir=parent) as folder:
        venv.create(folder, with_pip=False)
        out = output_of(BELOW, f"{folder}/bin/python")
    assert out == "['False', 'x', 'read-only'] \n" * 3


# --- slots that were lost -------------------------------------------------------------------

STARVED = embedded._Starved(RunResult(status=RunStatus.MEMORY_LIMIT))


def test_a_slot_lost_from_outside_is_never_a_memory_limit():
    for losses in ([SlotLost("a")], [STARVED, SlotLost("a")], [SlotLost("a"), STARVED]):
        with pytest.raises(SlotLost):
            embedded._blame(losses)
    assert embedded._blame([STARVED] * 3).status is RunStatus.MEMORY_LIMIT


FEW = """
import resource
for kind, value in ((resource.RLIMIT_NOFILE, 256), (resource.RLIMIT_CPU, 500)):
    resource.setrlimit(kind, (value, value))
from agent_r1.sandbox import EmbeddedExecutor, RunRequest, Limits
with EmbeddedExecutor(workers=1) as executor:
    code = "import resource; print(resource.getrlimit(resource.RLIMIT_NOFILE))"
    limits = Limits(cpu_seconds=1000)
    print(executor.run(RunRequest(code=code, limits=limits)).stdout, end="")
"""


def test_limits_of_our_own_that_are_lower_are_kept():
    assert output_of(FEW) == "(256, 256)\n"


def test_a_renamed_working_folder_is_made_anew():
    """Only a program with the user id of its slot's processes can do that."""
    with EmbeddedExecutor(workers=1) as executor:
        executor.run(RunRequest(code="import os\nos.rename('/sandbox/work', '/sandbox/other')"))
        after = executor.run(RunRequest(code="open('a', 'w').write('x')\nprint('fine')"))
    assert after.stdout == "fine\n"
