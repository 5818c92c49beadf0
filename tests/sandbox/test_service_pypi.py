"""Existing clients, unchanged: the PyPI package ``sandbox-fusion`` and a hand-written POST.

Behind the door stands an executor that runs programs as plain local processes, so that the
protocol is tested with real outcomes on machines that cannot isolate.
"""

import asyncio
import base64
import os
import subprocess
import sys
from pathlib import Path

import pytest
import requests
import sandbox_fusion
from sandbox_fusion import RunCodeRequest, RunJupyterRequest, RunStatus
from scripted_executor import ScriptedExecutor

from agent_r1.sandbox.base import RunRequest, RunResult
from agent_r1.sandbox.base import RunStatus as Outcome
from agent_r1.sandbox.serve import serving


def run_locally(folder: Path):
    """A script for :class:`ScriptedExecutor` without any isolation."""

    def run(request: RunRequest) -> RunResult:
        for name, content in request.files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        (folder / "main.py").write_text(request.code)
        try:
            done = subprocess.run(
                [sys.executable, "main.py"],
                input=request.stdin.encode(),
                capture_output=True,
                timeout=request.limits.wall_seconds,
                cwd=folder,
                env={**os.environ, "PYTHONWARNINGS": ""},
            )
        except subprocess.TimeoutExpired as late:
            return RunResult(status=Outcome.TIMEOUT, stdout=(late.stdout or b"").decode())
        paths = [path for path in request.fetch_files if (folder / path).is_file()]
        return RunResult(
            status=Outcome.ERROR if done.returncode else Outcome.SUCCESS,
            stdout=done.stdout.decode(),
            stderr=done.stderr.decode(),
            exit_code=done.returncode,
            files={path: (folder / path).read_bytes() for path in paths},
        )

    return run


@pytest.fixture
def url(tmp_path):
    with serving(ScriptedExecutor(run_locally(tmp_path), slots=1)) as url:
        yield url


def test_the_package_runs_code(url):
    answer = sandbox_fusion.run_code(
        RunCodeRequest(code="print(int(input()) + 1)", language="python", stdin="41"), endpoint=url
    )
    assert answer.status is RunStatus.Success
    assert answer.run_result.stdout == "42\n"
    assert answer.run_result.return_code == 0


def test_the_package_runs_code_asynchronously(url):
    async def several():
        asks = [
            sandbox_fusion.run_code_async(
                RunCodeRequest(code=f"print({i})", language="python"), endpoint=url
            )
            for i in range(4)
        ]
        return [answer.run_result.stdout for answer in await asyncio.gather(*asks)]

    assert asyncio.run(several()) == ["0\n", "1\n", "2\n", "3\n"]


def test_the_package_runs_many_at_once(url):
    requests_ = [RunCodeRequest(code=f"print({i})", language="python") for i in range(6)]
    answers = sandbox_fusion.run_concurrent(
        sandbox_fusion.run_code, args=[[r, url] for r in requests_], concurrency=6
    )
    assert [answer.run_result.stdout for answer in answers] == [f"{i}\n" for i in range(6)]


def test_the_package_does_not_retry_what_a_program_did_wrong(url):
    answer = sandbox_fusion.run_code(
        RunCodeRequest(code="raise ValueError('x')", language="python"), url, max_attempts=1
    )
    assert answer.status is RunStatus.Failed
    assert answer.run_result.return_code == 1
    assert answer.run_result.stderr.endswith("ValueError: x\n")
    code = "import time; print('part', flush=True); time.sleep(60)"
    answer = sandbox_fusion.run_code(
        RunCodeRequest(code=code, language="python", run_timeout=1.5), url, max_attempts=1
    )
    assert answer.status is RunStatus.Failed
    assert answer.run_result.status.value == "TimeLimitExceeded"
    assert answer.run_result.stdout == "part\n"


def test_the_package_sends_and_fetches_files(url):
    given = base64.b64encode(b"\x00data").decode()
    code = "open('out', 'wb').write(open('d/in', 'rb').read() * 2)"
    answer = sandbox_fusion.run_code(
        RunCodeRequest(
            code=code,
            language="python",
            files={"d/in": given, "named only": None},
            fetch_files=["out", "missing"],
        ),
        endpoint=url,
    )
    assert answer.files == {"out": base64.b64encode(b"\x00data\x00data").decode()}


def test_a_hand_written_post_with_all_fields_is_understood(url):
    payload = {
        "compile_timeout": 10,
        "run_timeout": 10,
        "code": "print(1)",
        "stdin": None,
        "memory_limit_MB": 1024,
        "language": "python",
        "files": {},
        "fetch_files": [],
    }
    headers = {"Content-Type": "application/json", "Accept": "application/json"}
    reply = requests.post(url + "/run_code", json=payload, headers=headers, timeout=30)
    reply.raise_for_status()
    assert reply.json()["status"] == "Success"
    assert reply.json()["run_result"]["stdout"] == "1\n"


def test_the_package_runs_a_notebook(url):
    cells = [
        "a = 'hello'",
        "a",
        "import sys; print(a); sys.stderr.write('warned\\n');",
        "assert False, 'no'",
        "def f():\n    return 1 / 0\nf()",
        "import asyncio\nawait asyncio.sleep(0)\n[a, _]",
        "import os; os.system('echo from a child');",
        "%matplotlib inline\ndisplay(1, 'two')",
        "int a",
    ]
    answer = sandbox_fusion.run_jupyter(RunJupyterRequest(cells=cells), endpoint=url)
    assert answer.status is RunStatus.Success
    assert answer.driver.return_code == 0
    cell = answer.cells
    assert len(cell) == len(cells)
    assert (cell[0].stdout, cell[0].stderr, cell[0].display, cell[0].error) == ("", "", [], [])
    assert cell[1].display == [{"text/plain": "'hello'"}]
    assert (cell[2].stdout, cell[2].stderr) == ("hello\n", "warned\n")
    assert cell[3].error[0]["ename"] == "AssertionError"
    assert cell[3].error[0]["evalue"] == "no"
    assert "    return 1 / 0" in cell[4].error[0]["traceback"]
    assert "notebook_driver" not in "".join(cell[4].error[0]["traceback"])
    assert cell[5].display == [{"text/plain": "['hello', 'hello']"}]
    assert cell[6].stdout == "from a child\n"
    assert cell[7].display == [{"text/plain": "1"}, {"text/plain": "'two'"}]
    assert cell[8].error[0]["ename"] == "SyntaxError"


def test_a_cell_may_run_out_of_time_and_the_next_goes_on(url):
    answer = sandbox_fusion.run_jupyter(
        RunJupyterRequest(cells=["while True: pass", "print(2)"], cell_timeout=0.2), endpoint=url
    )
    assert answer.cells[0].error[0]["ename"] == "CellTimeout"
    assert answer.cells[1].stdout == "2\n"


def test_a_notebook_takes_and_gives_files(url):
    answer = sandbox_fusion.run_jupyter(
        RunJupyterRequest(
            cells=["open('b', 'w').write(open('a').read().upper());"],
            files={"a": base64.b64encode(b"text").decode()},
            fetch_files=["b", ".notebook_record.json"],
        ),
        endpoint=url,
    )
    assert {k: base64.b64decode(v) for k, v in answer.files.items()} == {"b": b"TEXT"}


def test_a_notebook_shows_figures(url):
    cells = ["import matplotlib.pyplot as plt", "plt.plot([1, 2])\nplt.show()"]
    answer = sandbox_fusion.run_jupyter(RunJupyterRequest(cells=cells), endpoint=url)
    (shown,) = answer.cells[1].display
    assert base64.b64decode(shown["image/png"]).startswith(b"\x89PNG")
    assert answer.cells[1].stderr == ""


def test_a_notebook_that_dies_is_failed_without_cells(url):
    answer = sandbox_fusion.run_jupyter(
        RunJupyterRequest(cells=["import os; os._exit(3)"]), endpoint=url
    )
    assert answer.status is RunStatus.Failed
    assert answer.driver.return_code == 3
    assert answer.cells == []


@pytest.mark.parametrize("wrong", [{"kernel": "R"}, {"cell_timeout": -1}, {"total_timeout": 0}])
def test_an_invalid_notebook_is_422(url, wrong):
    body = {"cells": ["1"], **wrong}
    assert requests.post(url + "/run_jupyter", json=body, timeout=30).status_code == 422
    assert requests.post(url + "/run_jupyter", json={}, timeout=30).status_code == 422
