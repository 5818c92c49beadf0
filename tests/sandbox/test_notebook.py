"""Notebooks through the embedded executor: the magics that people write, and what is refused."""

import json

import pytest

from agent_r1.sandbox import EmbeddedExecutor, jupyter, wire


@pytest.fixture(scope="module")
def executor():
    with EmbeddedExecutor(workers=1) as made:
        yield made


def cells_of(executor, *cells, **options):
    body = json.dumps({"cells": cells, **options}).encode()
    request = jupyter.to_request(jupyter.decode_request(body))
    answer = jupyter.from_result(executor.run(request), len(cells))
    assert answer.status == "Success", answer
    assert len(answer.cells) == len(cells), answer
    return answer.cells


def test_the_commonest_magics(executor):
    timed, line, shell, block, shown, kept, written, place = cells_of(
        executor,
        "%%time\nx = 20 + 1\nx",
        "%matplotlib inline\n%load_ext autoreload\n%time y = x * 2\nprint(y)",
        "name = 'file'\n!echo {name} $((1 + 1))\nlines = !printf 'a\\nb'\nlines",
        "for i in range(2):\n    !echo {i}",
        "%%bash\nread x\necho bash $x",
        "%%timeit\nsum(range(10))",
        "%%writefile a.txt\n!not a command\n%nor a magic",
        "%cd /tmp\n%pwd",
    )
    assert "Wall time: " in timed.stdout and timed.display[0]["text/plain"] == "21"
    assert "Wall time: " in line.stdout and line.stdout.endswith("42\n")
    assert shell.stdout == "file 2\n" and shell.display[0]["text/plain"] == "['a', 'b']"
    assert (block.stdout, shown.stdout) == ("0\n1\n", "bash\n")
    assert "per loop" in kept.stdout and written.stdout == "Writing a.txt\n"
    assert place.display[0]["text/plain"].endswith("/tmp'")
    assert not any(cell.error for cell in (timed, line, shell, block, shown, kept, written))


@pytest.mark.parametrize(
    "line", ["%pip install numpy", "!pip install -q numpy", "! python -m pip install x"]
)
def test_installing_is_refused_in_words_and_the_cell_goes_on(executor, line):
    (cell,) = cells_of(executor, f"{line}\nprint('on')")
    assert "nothing can be installed" in cell.stderr and "imported" in cell.stderr
    assert (cell.stdout, cell.error) == ("on\n", [])


def test_a_notebook_without_cells_is_a_success(executor):
    assert cells_of(executor) == []


def test_what_is_no_magic_stays_python(executor):
    text, modulo, wrong, unknown = cells_of(
        executor,
        "print('''\n%time\n!ls\n''')",
        "print(7\n%4)",
        "x = 1\ny = (",
        "%frobnicate 3",
    )
    assert (text.stdout, modulo.stdout) == ("\n%time\n!ls\n\n", "3\n")
    assert wrong.error[0]["ename"] == "SyntaxError"
    assert unknown.error[0]["ename"] == "UsageError" and "%frobnicate" in unknown.error[0]["evalue"]


@pytest.mark.parametrize("seconds", [1e-300, 1e-9, 1e-6, 1e-3])
def test_a_tiny_cell_timeout_is_a_timeout(executor, seconds):
    slow, fast = cells_of(executor, "while True: pass", "print(1)", cell_timeout=seconds)
    assert slow.error[0]["ename"] == "CellTimeout"
    assert fast.stdout == "1\n" or fast.error


@pytest.mark.parametrize(
    ("name", "value"),
    [("cell_timeout", "nan"), ("cell_timeout", "inf"), ("cell_timeout", -1), ("total_timeout", 0)],
)
def test_time_limits_that_are_none_are_refused(name, value):
    body = json.dumps({"cells": [], name: value}).encode()
    with pytest.raises(wire.InvalidRequest, match=name):
        jupyter.to_request(jupyter.decode_request(body))
