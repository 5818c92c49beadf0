"""The page of trajectories: what is in it, and that nobody's text can become markup."""

import json
import re
import shutil
import subprocess
from dataclasses import replace

import pytest

from agent_r1.cli import cli
from agent_r1.errors import ConfigError, DataError
from agent_r1.monitor.jsonl import JsonlFile
from agent_r1.monitor.records import encode_trajectory
from agent_r1.testing import byte_tokenizer, make_trajectory
from agent_r1.types import Completion, Finish, Reward
from agent_r1.viewer import Choice, write_page

HOSTILE = "</script><script>document.title='owned'</script><!--<b>bold</b>"


def stored(tmp_path, trajectories, name="trajectories.jsonl"):
    file = JsonlFile(tmp_path / name)
    file.append([encode_trajectory(t, step=step, split=split) for step, split, t in trajectories])
    file.close()
    return tmp_path


def read(page):
    text = page.read_text()
    (data,) = re.findall(r'<script id="data" type="application/json">(.*?)</script>', text, re.S)
    return json.loads(data)


def scored(texts, value, **changes):
    return replace(make_trajectory(texts, **changes), reward=Reward(value, {"accuracy": value}))


def test_a_trajectory_is_shown_whole(tmp_path):
    folder = stored(tmp_path, [(3, "train", scored(["<code>1</code>", "done"], 1.0))])
    assert write_page(folder, tmp_path / "page.html", Choice()) == 1
    data = read(tmp_path / "page.html")
    (one,) = data["trajectories"]
    assert not data["tokens"]
    assert (one["step"], one["split"], one["reward"], one["parts"]) == (
        *(3, "train", 1.0),
        {"accuracy": 1.0},
    )
    assert [turn["pieces"] for turn in one["turns"]] == [
        [["<code>1</code>", None]],
        [["done", None]],
    ]


def test_with_a_tokenizer_every_token_has_its_probability(tmp_path):
    tokenizer = byte_tokenizer(extra_tokens=["</code>"])
    text = "é🙂x</code>"
    ids = tuple(tokenizer.encode(text, add_special_tokens=False))
    logprobs = tuple(-0.1 * i for i in range(len(ids)))
    base = scored([text], 0.0)
    turn = replace(base.turns[0], completion=Completion(ids, logprobs, Finish.EOS), text=text)
    folder = stored(tmp_path, [(0, "val", replace(base, turns=(turn,)))])
    write_page(folder, tmp_path / "page.html", Choice(), tokenizer)
    (one,) = read(tmp_path / "page.html")["trajectories"]
    pieces = one["turns"][0]["pieces"]
    assert [piece for piece, _ in pieces] == ["é", "🙂", "x", "</code>"]
    assert [p for _, p in pieces] == pytest.approx([-0.1, -1.4, -0.6, -0.7])


def test_versions_within_a_turn_are_told(tmp_path):
    base = scored(["abcdef"], 0.0)
    mixed = replace(base.turns[0].completion, versions=((0, 3), (2, 4), (5, 6)))
    folder = stored(
        tmp_path, [(4, "train", replace(base, turns=(replace(base.turns[0], completion=mixed),)))]
    )
    write_page(folder, tmp_path / "page.html", Choice())
    (turn,) = read(tmp_path / "page.html")["trajectories"][0]["turns"]
    assert turn["version"] == "3, 4 from token 2, 6 from token 5"


def test_bytes_that_are_no_text_are_shown_too(tmp_path):
    tokenizer = byte_tokenizer()
    ids = (0xF0, 0x41, 0xC3)
    base = scored(["?"], 0.0)
    broken = Completion(ids, (-1.0, -2.0, -3.0), Finish.LENGTH)
    turn = replace(base.turns[0], completion=broken, text=tokenizer.decode(list(ids)))
    folder = stored(tmp_path, [(0, "val", replace(base, turns=(turn,)))])
    write_page(folder, tmp_path / "page.html", Choice(), tokenizer)
    pieces = read(tmp_path / "page.html")["trajectories"][0]["turns"][0]["pieces"]
    assert "".join(piece for piece, _ in pieces) == "\ufffdA\ufffd"
    assert sum(p for _, p in pieces) == -6.0


def test_the_last_that_fit_are_chosen(tmp_path):
    made = [
        (step, split, scored([f"{step} {split}"], float(step % 2)))
        for step in range(6)
        for split in ("train", "val")
    ]
    folder = stored(tmp_path, made)

    def texts(**choice):
        write_page(folder, tmp_path / "page.html", Choice(**choice))
        shown = read(tmp_path / "page.html")["trajectories"]
        return [t["turns"][0]["pieces"][0][0] for t in shown]

    assert texts(most=3, wrong=True) == ["4 val", "4 train", "2 val"]
    assert texts(step=2) == ["2 val", "2 train"]
    assert texts(split="val", wrong=True) == ["4 val", "2 val", "0 val"]
    with pytest.raises(DataError, match="no trajectory"):
        texts(step=9)
    with pytest.raises(DataError, match="no trajectory"):
        texts(outcome="engine_error")


def grouped(mean, step, name):
    """A group of two with this mean of rewards."""
    return [
        (step, "train", replace(scored([f"{step} {name}"], value), group_id=name))
        for value in (mean - 0.25, mean + 0.25)
    ]


def chosen_of(folder, tmp_path, **choice):
    write_page(folder, tmp_path / "page.html", Choice(**choice))
    shown = read(tmp_path / "page.html")["trajectories"]
    return [(t["turns"][0]["pieces"][0][0], t["chosen"]) for t in shown]


def test_where_nothing_is_asked_for_the_page_tells_how_the_run_went(tmp_path):
    means = {(0, "a"): 0.5, (0, "b"): 0.5, (1, "c"): 0.9, (1, "d"): 0.2}
    means |= {(2, "e"): 0.9, (2, "f"): 0.3, (3, "g"): 0.6, (3, "h"): 0.7}
    rows = [row for (step, name), mean in means.items() for row in grouped(mean, step, name)]
    held_out = [(3, "val", scored(["3 val"], 1.0))] * 4
    folder = stored(tmp_path, rows + held_out)
    assert chosen_of(folder, tmp_path, most=8) == [
        *[("3 g", "last step")] * 2,
        *[("2 e", "best group")] * 2,
        *[("1 d", "worst group")] * 2,
        *[("0 a", "first step")] * 2,
    ]
    everything = chosen_of(folder, tmp_path)
    assert len(everything) == len(rows + held_out)
    assert {reason for text, reason in everything if text == "3 val"} == {"among the last"}


def test_an_evaluation_has_no_training_to_tell_of(tmp_path):
    rows = [(0, "val", replace(scored([f"{i}"], i % 2), group_id=f"{i}")) for i in range(8)]
    folder = stored(tmp_path, rows)
    assert len(chosen_of(folder, tmp_path, most=4)) == 4
    big = [(0, "val", replace(scored(["x"], 1.0), group_id="one")) for _ in range(9)]
    (tmp_path / "big").mkdir()
    assert len(chosen_of(stored(tmp_path / "big", big), tmp_path, most=4)) == 4


def test_nothing_stored_is_an_error_and_several_held_out_splits_are_none(tmp_path):
    with pytest.raises(DataError, match="no trajectory"):
        write_page(stored(tmp_path, []), tmp_path / "page.html", Choice())
    (tmp_path / "two").mkdir()
    rows = [(0, split, scored([split], 1.0)) for split in ("val", "test")]
    assert len(chosen_of(stored(tmp_path / "two", rows), tmp_path)) == 2


def test_the_average_of_a_group_counts_siblings_that_are_not_shown(tmp_path):
    siblings = [scored(["a"], value) for value in (1.0, 0.0, 0.5)]
    folder = stored(tmp_path, [(1, "train", t) for t in siblings])
    write_page(folder, tmp_path / "page.html", Choice(most=1))
    assert read(tmp_path / "page.html")["trajectories"][0]["group"] == [0.5, 3]


def test_what_a_model_writes_is_never_markup(tmp_path):
    folder = stored(tmp_path, [(0, "train", scored([HOSTILE, HOSTILE], 0.0))])
    write_page(folder, tmp_path / "page.html", Choice())
    page = (tmp_path / "page.html").read_text()
    assert page.count("</script>") == 2 and "<b>bold" not in page and "<!--" not in page
    (one,) = read(tmp_path / "page.html")["trajectories"]
    assert one["turns"][0]["pieces"][0][0] == HOSTILE
    assert "http:" not in page.replace("http-equiv", "") and "https:" not in page
    assert "innerHTML" not in page


@pytest.mark.skipif(not shutil.which("chromium"), reason="needs chromium")
def test_a_browser_shows_hostile_text_as_text(tmp_path):
    folder = stored(tmp_path, [(0, "train", scored([HOSTILE], 0.0))])
    write_page(folder, tmp_path / "page.html", Choice())
    words = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic"]
    words += ["--no-first-run", "--disable-background-networking", "--disable-component-update"]
    words += [f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom"]
    done = subprocess.run(
        [*words, f"file://{tmp_path}/page.html"], capture_output=True, text=True, timeout=120
    )
    body = done.stdout.rpartition("<main")[2]
    assert "&lt;/script&gt;&lt;script&gt;document.title" in body
    assert "<title>" in done.stdout and "owned</title>" not in done.stdout
    assert "1 of 1 trajectories" in done.stdout


def test_the_command_finds_the_runs_tokenizer(tmp_path, capsys):
    folder = stored(tmp_path, [(0, "train", scored(["hello"], 1.0))])
    out = tmp_path / "page.html"
    cli.main(["view", str(folder), "--export", str(out)], standalone_mode=False)
    said = capsys.readouterr()
    assert "1 trajectories →" in said.out and "--tokenizer" in said.err
    assert not read(out)["tokens"]
    policy = tmp_path / "checkpoints" / "step-000002" / "policy"
    byte_tokenizer().save_pretrained(policy)
    (policy / "config.json").write_text("{}")
    arguments = ["view", str(folder), "--export", str(out), "--split", "train"]
    cli.main(arguments, standalone_mode=False)
    assert read(out)["tokens"] and not capsys.readouterr().err


def test_choices_of_the_export_need_the_export(tmp_path):
    folder = stored(tmp_path, [(0, "train", scored(["hello"], 1.0))])
    with pytest.raises(ConfigError, match="--wrong"):
        cli.main(["view", str(folder), "--wrong"], standalone_mode=False)
    with pytest.raises(ConfigError, match="one run"):
        cli.main(["view", "--export", str(tmp_path / "x.html")], standalone_mode=False)
