"""Every logged name has a sentence, and every sentence a name that is logged."""

import ast
import re
from pathlib import Path

import pytest

from agent_r1.errors import ConfigError
from agent_r1.monitor.console import HEADLINES
from agent_r1.monitor.names import METRICS, explain, meaning

PACKAGE = Path(__file__).parents[2] / "agent_r1"
PREFIXES = {name.split("/")[0] for name in METRICS}
NAME = re.compile(r"[a-z_-]+(/[a-zA-Z_@*-]+)+")
WRITERS = ("monitor/metrics.py", "trainer", "distributed/worker.py", "algorithms/stats.py")
NO_METRICS = {"critic/rewards", "rollout/seconds", "val/generations"}


def written_names():
    """String literals of the writing code that look like a metric; what is put in is ``*``."""
    found = set()
    for place in WRITERS:
        path = PACKAGE / place
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            tree = ast.parse(file.read_text())
            docs = {id(n.value) for n in ast.walk(tree) if isinstance(n, ast.Expr)}
            joined = [n for n in ast.walk(tree) if isinstance(n, ast.JoinedStr)]
            inner = {id(value) for node in joined for value in node.values}
            for node in ast.walk(tree):
                if id(node) in docs or id(node) in inner:
                    continue
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.add(node.value)
                elif isinstance(node, ast.JoinedStr):
                    parts = [v.value if isinstance(v, ast.Constant) else "*" for v in node.values]
                    found.add("".join(map(str, parts)))
    return {n for n in found if NAME.fullmatch(n) and n.split("/")[0] in PREFIXES} - NO_METRICS


def test_every_name_in_the_code_has_a_meaning():
    names = written_names()
    assert len(names) > 40  # the search finds them at all
    whole = {name for name in names if "*" not in name}
    assert sorted(name for name in whole if meaning(name) is None) == []
    begun = {name.split("*")[0] for name in names - whole}
    assert [b for b in begun if not any(known.startswith(b) for known in METRICS)] == []


def test_the_names_that_are_put_together_have_a_meaning():
    """``_named(prefix, summary)`` of the updates, and the phases of the clock."""
    keys = re.compile(r'^ +"([a-z_0-9]+)": .*(?:self\.|float\()', re.M)
    stats = (PACKAGE / "algorithms/stats.py").read_text()
    summaries = set(keys.findall(stats)) | {"updates", "skipped_updates", "grad_norm", "lr"}
    named = {prefix + name for prefix in ("actor/", "critic/", "training/") for name in summaries}
    assert len(summaries) > 15
    missing = [s for s in summaries if not any(meaning(n) for n in named if n.endswith(f"/{s}"))]
    assert missing == []
    phases = set()
    for file in (PACKAGE / "trainer").rglob("*.py"):
        phases |= set(re.findall(r'clock\("([a-z_]+)"\)', file.read_text()))
    assert {f"timing_s/{p}" for p in phases} <= set(METRICS) and "gen" in phases


def test_a_run_logs_nothing_without_a_meaning_and_the_table_matches_names_of_every_kind():
    for name in ("rollout/seconds/max", "reward/format/mean", "val-core/math/hard/reward/mean@8",
                 "async/version_share/lag_3", "outcome/length"):  # fmt: skip
        assert meaning(name)
    assert meaning("rollout/sucess") is None and meaning("step") is None


def test_the_command_explains_one_prefix_one_name_or_all():
    assert list(explain("tool/success")) == [
        "tool/success: share of tool calls that succeed; absent without any"
    ]
    assert [line.split()[0] for line in explain("tool")] == [n for n in METRICS if n[:5] == "tool/"]
    assert len(list(explain())) == len(METRICS)
    with pytest.raises(ConfigError, match="did you mean rollout/success"):
        list(explain("rollout/sucess"))


def test_a_metric_is_found_by_what_the_console_calls_it():
    (line,) = explain("calls a tool")
    assert line == (
        "rollout/tool_call_share (calls a tool on the console): "
        "share of trajectories that call a tool"
    )
    assert [line.split()[0] for line in explain("reward")] == [
        "critic/rewards/mean",
        "reward/*/mean",
    ]
    assert all(meaning(key) for row in HEADLINES for key in row.keys)
