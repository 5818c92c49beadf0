"""The application's server: who may read, and what it answers."""

import ast
import json
import posixpath
import re
import socket
import threading
from dataclasses import replace
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest
from starlette.testclient import TestClient

from agent_r1.cli import cli
from agent_r1.config import Config
from agent_r1.data.traces import trace_from_row
from agent_r1.errors import ConfigError, DataError
from agent_r1.monitor import RunFolder, rollout_metrics
from agent_r1.monitor.jsonl import JsonlFile
from agent_r1.monitor.tokens import TokenRecords
from agent_r1.testing import byte_tokenizer, make_trajectory
from agent_r1.types import Completion, Finish, Outcome, Reward, Task, Turn
from agent_r1.viewer.api import Api
from agent_r1.viewer.catalog import Catalog
from agent_r1.viewer.server import Server, make_app, serve

BASE = "http://127.0.0.1:8000"


def made(task, index, value, *texts, outcome=Outcome.FINISHED):
    base = make_trajectory(texts or ["<code>1</code>", "done"], outcome=outcome)
    return replace(
        base,
        task=Task(task, f"question {task}", 7, "sums"),
        group_id=f"g:{task}",
        index=index,
        reward=None if value is None else Reward(value, {"accuracy": value}),
    )


@pytest.fixture
def run(tmp_path):
    """Two steps of two groups: one whose members differ, one whose members are the same."""
    folder = tmp_path / "runs" / "one"
    with RunFolder(folder, Config(), seeds={"trainer.seed": 0}) as out:
        for step in (1, 2):
            batch = [
                made("even", 0, 0.5),
                made("even", 1, 0.5),
                made("odd", 0, 1.0, f"right {step}"),
                made("odd", 1, 0.0, ("<code>x</code>", "error"), "wrong"),
                made("odd", 2, None, outcome=Outcome.TOOL_ERROR),
            ]
            out.store(batch, step=step)
            out.log(rollout_metrics(batch) | {"actor/entropy": 1.0 / step}, step=step)
    return folder


def client(*roots, token="secret", tokenizer=None, **options):
    app = make_app(Catalog(roots), token, tokenizer)
    return TestClient(app, base_url=BASE, **options)


@pytest.fixture
def web(run):
    with client(run.parent) as session:
        assert session.get("/?token=secret").status_code == 200
        yield session


def ask(web, what, /, **params):
    answer = web.get(f"/api/{what}", params=params)
    assert answer.status_code == 200, answer.text
    return answer.json()


def only_run(web):
    return ask(web, "runs")["runs"][0]["key"]


# --- access -----------------------------------------------------------------------------


def test_nothing_is_read_without_the_token(run):
    with client(run) as web:
        for path in ("/", "/api/runs", "/assets/app.js", "/?token=", "/?token=secre"):
            answer = web.get(path)
            assert answer.status_code == 401 and "runs" not in answer.text
        assert web.get("/", headers={"cookie": "agent_r1_view_8000=guess"}).status_code == 401


def test_the_token_in_the_address_becomes_a_cookie(run):
    with client(run) as web:
        cookie = web.get("/?token=secret").headers["set-cookie"]
        assert "HttpOnly" in cookie and "SameSite=Strict" in cookie
        assert web.get("/api/runs").status_code == 200
        assert web.get("/assets/app.js").headers["content-type"].startswith("text/javascript")


def test_other_hosts_are_refused_even_with_the_token(run):
    for host in ("evil.example", "127.0.0.1.evil.example", "evil.example:8000", "", "[::1"):
        with client(run) as web:
            answer = web.get("/?token=secret", headers={"host": host})
            assert answer.status_code == 421
            assert "set-cookie" not in answer.headers
    with client(run) as web:
        assert web.get("/?token=secret", headers={"host": "localhost:8000"}).status_code == 200


def test_requests_of_other_pages_are_refused(web):
    for headers in (
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:9999"},
        {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"},
        {"sec-fetch-site": "same-site", "sec-fetch-mode": "cors"},
    ):
        assert web.get("/api/runs", headers=headers).status_code == 403
    own = {"origin": BASE, "sec-fetch-site": "same-origin", "sec-fetch-mode": "cors"}
    assert web.get("/api/runs", headers=own).status_code == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
def test_nothing_can_be_written(web, method):
    for headers in ({}, {"origin": "http://evil.example"}):
        assert web.request(method, "/api/runs", headers=headers).status_code == 405


def test_every_answer_forbids_foreign_scripts_and_markup(web):
    for path in ("/", "/api/runs", "/api/nothing", "/assets/app.js", "/assets/none.js"):
        headers = web.get(path).headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy and "script-src 'self'" in policy
        assert "unsafe" not in policy and "require-trusted-types-for 'script'" in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert "access-control-allow-origin" not in headers


def test_files_outside_the_assets_are_not_served(web):
    for path in ("/assets/../server.py", "/assets/%2e%2e/server.py", "/assets//etc/passwd"):
        assert web.get(path).status_code == 404


def test_the_page_asks_for_nothing_from_elsewhere(web):
    page = web.get("/").text
    assert "http:" not in page and "https:" not in page and "<script>" not in page


# --- answers ----------------------------------------------------------------------------


def test_the_table_of_runs(web, run):
    found = ask(web, "runs")
    (one,) = found["runs"]
    assert (one["label"], one["state"], one["step"]) == ("runs/one", "finished", 2)
    assert one["success"] == pytest.approx(3 / 4) and one["reward"] == pytest.approx(0.5)
    assert "actor/entropy" in one["names"] and one["has_trajectories"]
    assert found["differing"] == {}


def test_settings_that_differ_are_named(run, tmp_path):
    config = Config.model_validate({"trainer": {"seed": 5}, "algorithm": {"gamma": 0.5}})
    with RunFolder(tmp_path / "runs" / "two", config) as out:
        out.log({"actor/entropy": 1.0}, step=1)
    with client(run.parent) as web:
        web.get("/?token=secret")
        found = ask(web, "runs")
        keys = {each["label"]: each["key"] for each in found["runs"]}
        assert found["differing"] == {"algorithm.gamma": {keys["one"]: 1.0, keys["two"]: 0.5}}
        assert len({each["group"] for each in found["runs"]}) == 2


def test_seeds_of_one_setting_are_one_group(run, tmp_path):
    for seed in (1, 2):
        own = tmp_path / "runs" / f"seed{seed}"
        trainer = {"seed": seed, "default_local_dir": str(own / "rl")}
        model = {"model": {"path": str(own / "model")}}
        config = Config.model_validate({"trainer": trainer, "actor_rollout_ref": model})
        with RunFolder(own / "rl", config) as out:
            out.log({"actor/entropy": 1.0}, step=1)
    with client(run.parent) as web:
        web.get("/?token=secret")
        groups = {each["label"]: each["group"] for each in ask(web, "runs")["runs"]}
    assert groups["seed1/rl"] == groups["seed2/rl"] != groups["one"]


def test_curves_leave_out_what_is_not_finite(web, run):
    file = JsonlFile(run / "metrics.jsonl")
    file.append([{"step": 3, "actor/entropy": "NaN", "actor/lr": 0.1}])
    file.close()
    key = only_run(web)
    found = ask(web, "metrics", run=key, name=["actor/entropy", "actor/lr", "none"])[key]
    assert found["actor/entropy"] == {"steps": [1, 2], "values": [1.0, 0.5]}
    assert found["actor/lr"] == {"steps": [3], "values": [0.1]}
    assert found["none"] == {"steps": [], "values": []}


def test_a_pulse_changes_with_what_is_written(web, run):
    before = ask(web, "pulse")
    assert ask(web, "pulse") == before
    file = JsonlFile(run / "metrics.jsonl")
    file.append([{"step": 3, "actor/entropy": 0.1}])
    file.close()
    assert ask(web, "pulse") != before
    assert ask(web, "runs")["runs"][0]["step"] == 3


def test_a_step_has_its_groups_sorted_by_spread(web):
    found = ask(web, "step", run=only_run(web), step=2, split="train")
    odd, even = found["groups"]
    assert (odd["spread"], even["spread"]) == (0.5, 0.0)
    assert odd["question"] == "question odd"
    assert [row["reward"] for row in odd["rows"]] == [1.0, 0.0, None]
    assert found["metrics"]["actor/entropy"] == 0.5 and found["total"] == 5


def test_trajectories_are_found_and_walked_through(web):
    key = only_run(web)
    found = ask(web, "trajectories", run=key, reward_max=0.2, sort="step", descending="false")
    assert found["total"] == 2 and [row["step"] for row in found["rows"]] == [1, 2]
    (right,) = ask(web, "trajectories", run=key, text="right 2")["rows"]
    assert right["reward"] == 1.0
    first, second = (row["key"] for row in found["rows"])
    search = {"reward_max": 0.2, "sort": "step", "descending": "false"}
    assert ask(web, "around", run=key, key=first, **search) == {"before": None, "next": second}
    assert ask(web, "around", run=key, key=second, **search) == {"before": first, "next": None}
    assert ask(web, "around", run=key, key="99") == {"before": None, "next": None}


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ({"run": "none"}, 404),
        ({"step_from": "x"}, 400),
        ({"tool_error": "maybe"}, 400),
        ({"sort": "colour"}, 400),
    ],
)
def test_what_cannot_be_answered_is_said(web, query, status):
    answer = web.get("/api/trajectories", params={"run": only_run(web)} | query)
    assert answer.status_code == status and answer.json()["error"]


def test_a_trajectory_comes_with_tokens_and_siblings(tmp_path):
    tokenizer = byte_tokenizer()
    text = "é<"
    ids = tuple(tokenizer.encode(text, add_special_tokens=False))
    base = made("odd", 0, 1.0, text)
    sampled = Completion(ids, (-0.5, -1.0, -2.0), Finish.EOS, versions=((0, 3), (2, 4)))
    turn = replace(base.turns[0], completion=sampled, prompt_ids=(65, 66))
    whole = replace(base, turns=(turn,))
    folder = tmp_path / "run"
    with RunFolder(folder, Config(), token_file=True) as out:
        out.store([whole, made("odd", 1, 0.0)], step=4)
        nothing = np.array([np.nan] * 3)
        worth = np.array([1.5, np.nan, -1.5])
        seen = TokenRecords([whole.id], [3], worth, nothing, np.array([0.5, 1, 2]))
        out.store_tokens(seen, step=4)
    tokenizer.save_pretrained(tmp_path / "model")
    with client(folder, tokenizer=tmp_path / "model") as web:
        web.get("/?token=secret")
        run = only_run(web)
        key = ask(web, "trajectories", run=run, descending="false")["rows"][0]["key"]
        found = ask(web, "trajectory", run=run, key=key)
        answer = ask(web, "tokens", run=run, key=key, turn=0, end=9)
        first = ask(web, "tokens", run=run, key=key, turn=0, end=2)
        absent = {"run": run, "key": key, "turn": 1, "end": 2}
        assert web.get("/api/tokens", params=absent).status_code == 404
    tokens = answer["tokens"]
    assert found["measured"] == {
        "versions": 4,
        "logprobs": 0,
        "advantages": 1.5,
        "differences": 0,
        "entropies": 2,
    }
    assert first["total"] == answer["total"] == 3
    assert first["tokens"]["pieces"] == [["é", 2]] and first["tokens"]["versions"] == [3, 3]
    assert first["tokens"]["advantages"] == [1.5, None]
    assert tokens["pieces"] == [["é", 2], ["<", 1]]
    assert tokens["logprobs"] == [-0.5, -1.0, -2.0] and tokens["versions"] == [3, 3, 4]
    assert tokens["advantages"] == [1.5, None, -1.5] and tokens["entropies"] == [0.5, 1, 2]
    assert tokens["differences"] == [None] * 3
    assert answer["context"] == "AB" and answer["observed"] == ""
    assert [row["reward"] for row in found["siblings"]] == [1.0, 0.0]


def test_tokens_of_a_later_turn_are_those_of_that_turn(tmp_path):
    base = made("odd", 0, 1.0, ("ab", "-"), ("cde", "+"))
    with RunFolder(tmp_path / "run", Config(), token_file=True) as out:
        out.store([base], step=1)
        worth = np.arange(sum(turn.completion.length for turn in base.turns), dtype=float)
        out.store_tokens(TokenRecords([base.id], [len(worth)], worth, worth, worth), step=1)
    byte_tokenizer().save_pretrained(tmp_path / "model")
    with client(tmp_path / "run", tokenizer=tmp_path / "model") as web:
        web.get("/?token=secret")
        key = only_run(web)
        turns = ask(web, "trajectory", run=key, key="0")["turns"]
        found = ask(web, "tokens", run=key, key="0", turn=1, end=2)
    assert found["context"] is None and found["total"] == turns[1]["length"]
    before = turns[0]["length"]
    assert found["tokens"]["advantages"] == [before, before + 1]
    behind = len(base.turns[1].prompt_ids)
    assert turns[1]["context_length"] == behind


def test_a_trajectory_is_answered_by_what_it_shows_however_many_tokens_it_has(tmp_path):
    """The answer has the texts, once, and none of what grows with the tokens beside them."""
    sizes = {}
    for count in (100, 100_000):
        ids = (97,) * count
        turn = Turn((65,), Completion(ids, (-1.0,) * count, Finish.STOP), "text", ids, "seen")
        turns = [turn]
        for _ in range(3):
            turns.append(replace(turn, prompt_ids=turns[-1].next_prompt_ids))
        folder = tmp_path / str(count)
        with RunFolder(folder, Config()) as out:
            out.store([replace(made("odd", 0, 1.0), turns=tuple(turns))], step=1)
        with client(folder) as web:
            web.get("/?token=secret")
            params = {"run": only_run(web), "key": "0"}
            sizes[count] = len(web.get("/api/trajectory", params=params).content)
    assert sizes[100_000] - sizes[100] < 100  # digits of lengths


def test_an_edited_context_begins_a_new_segment(tmp_path):
    base = made("odd", 0, 1.0, ("a", "b"), "c")
    cut = replace(base.turns[1], prompt_ids=(1, 2))
    with RunFolder(tmp_path / "run", Config()) as out:
        out.store([base, replace(base, turns=(base.turns[0], cut))], step=1)
    with client(tmp_path / "run") as web:
        web.get("/?token=secret")
        key = only_run(web)
        whole, edited = (ask(web, "trajectory", run=key, key=k)["turns"] for k in ("0", "1"))
    assert [turn["begins"] for turn in whole] == [True, False]
    assert [turn["begins"] for turn in edited] == [True, True]


def test_copies_are_what_the_project_reads(web):
    key = only_run(web)
    (row,) = ask(web, "trajectories", run=key, text="error wrong", step_from=2)["rows"]

    def copied(form):
        return web.get("/api/copy", params={"run": key, "key": row["key"], "form": form}).text

    trace = trace_from_row(json.loads(copied("trace")))
    assert [s.text for s in trace.segments] == ["<code>x</code>", "error", "wrong"]
    assert "```text\n<code>x</code>\n```" in copied("markdown")
    scope = {}
    exec(copied("test").replace("my_reward(trajectory).value == 0.0", "True"), scope)
    scope["test_trajectory_g_odd_1"]()
    assert web.get("/api/copy", params={"run": key, "key": "0", "form": "x"}).status_code == 404


def test_a_test_case_shows_what_cannot_be_seen(tmp_path):
    hostile = 'x\u202e"""\x1b[31m\\'
    with RunFolder(tmp_path / "run", Config()) as out:
        out.store([made("odd", 0, 1.0, hostile)], step=1)
    with client(tmp_path / "run") as web:
        web.get("/?token=secret")
        text = web.get("/api/copy", params={"run": only_run(web), "key": "0", "form": "test"}).text
    assert text.isascii()
    constants = [n.value for n in ast.walk(ast.parse(text)) if isinstance(n, ast.Constant)]
    assert hostile in constants


def test_validation_has_the_interval_of_its_tasks(tmp_path):
    with RunFolder(tmp_path / "run", Config()) as out:
        out.store_validation([made(str(i), 0, float(i < 3)) for i in range(10)], step=5)
        out.log({"val-core/sums/accuracy/mean@1": 0.3}, step=5)
    with client(tmp_path / "run") as web:
        web.get("/?token=secret")
        name = "val-core/sums/accuracy/mean@1"
        key = only_run(web)
        found = ask(web, "interval", run=key, name=name)["runs"][key]
    # Wilson's interval of 3 of 10, from the formula by hand.
    assert found["steps"] == [5]
    assert found["low"] == pytest.approx([0.10779], abs=1e-4)
    assert found["high"] == pytest.approx([0.60322], abs=1e-4)


# --- the command ------------------------------------------------------------------------


def test_a_real_server_answers_on_loopback_and_ends(run):
    with Server(Catalog([run])) as server:
        with httpx.Client() as web:
            assert web.get(server.address.partition("?")[0]).status_code == 401
            assert web.get(server.address).status_code == 200
            assert len(web.get(server.address.replace("/?", "/api/runs?")).json()["runs"]) == 1
        port = int(server.address.split(":")[2].split("/")[0])
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0


def test_folders_without_runs_and_taken_ports_are_refused(tmp_path, run):
    with pytest.raises(DataError, match="there is no run"):
        serve([tmp_path / "nothing"], browser=False)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(DataError, match="cannot be used"):
            Server(Catalog([run]), taken.getsockname()[1])


def test_the_command_needs_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="no folder runs/"):
        cli.main(["view"], standalone_mode=False)


def test_metrics_come_with_what_they_mean(web):
    found = ask(web, "meanings", name=["actor/entropy", "val-core/sums/accuracy/mean@1", "mine"])
    assert (
        "nats" in found["actor/entropy"] and "validation" in found["val-core/sums/accuracy/mean@1"]
    )
    assert "mine" not in found


# --- the files of the page --------------------------------------------------------------


def test_the_page_names_every_module_of_its_first_view_and_none_of_later_ones(web):
    page = web.get("/").text
    named = re.findall(r'<link rel="modulepreload" href="(.*?)">', page)
    for name in named:
        answer = web.get(f"/{name}")
        assert answer.status_code == 200
        for target in re.findall(r'from "(\..*?)";', answer.text):
            assert posixpath.normpath(posixpath.join(posixpath.dirname(name), target)) in named
    assert "assets/vendor/preact.js" in named and "assets/views/runs.js" in named
    assert not [name for name in named if "uplot" in name or "highlight" in name]
    assert "assets/views/curves.js" not in named  # it needs uPlot


def test_the_runs_come_with_the_marks_of_before_they_were_read(web, run):
    before = ask(web, "runs")
    assert before["pulse"] == ask(web, "pulse")
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 99, "critic/rewards/mean": 0.125}\n')
    after = ask(web, "runs")
    assert after["pulse"] != before["pulse"]
    assert after["runs"][0]["step"] == 99 and after["runs"][0]["reward"] == 0.125


def test_a_search_that_nobody_waits_for_any_more_is_left_out(run, monkeypatch):
    """While one is answered, three come, of which the first two are given up: a typed word."""
    answered, going, go_on = [], threading.Event(), threading.Event()
    find = Api.trajectories

    def slow(self, request):
        answered.append(request.query_params["text"])
        going.set()
        assert go_on.wait(30)
        return find(self, request)

    monkeypatch.setattr(Api, "trajectories", slow)
    with Server(Catalog([run])) as server:
        token = server.address.partition("?")[2]
        with httpx.Client(base_url=server.address.partition("?")[0], timeout=30) as web:
            key = web.get(f"/?{token}") and web.get("/api/runs").json()["runs"][0]["key"]
            cookie = "; ".join(f"{name}={value}" for name, value in web.cookies.items())
        host = urlsplit(server.address).netloc

        def asked(text):
            connection = socket.create_connection(host.split(":"))
            lines = f"GET /api/trajectories?run={key}&text={text} HTTP/1.1\r\nHost: {host}\r\n"
            connection.sendall(f"{lines}Cookie: {cookie}\r\nConnection: close\r\n\r\n".encode())
            return connection

        first = asked("r")
        assert going.wait(30)
        for text in ("ri", "rig"):
            asked(text).close()
        last = asked("righ")
        # The server has seen what came before when it answers what came after.
        assert httpx.get(server.address, timeout=30).status_code == 200
        go_on.set()
        for connection in (first, last):
            with connection, connection.makefile("rb") as answer:
                assert b"200" in answer.readline()
    assert answered == ["r", "righ"]
