"""Several runs in one picture: bands worked by hand, groups by their settings."""

import json

import pytest
from click.testing import CliRunner

from agent_r1.cli import cli
from agent_r1.config import Config
from agent_r1.config.load import to_yaml
from agent_r1.errors import DataError
from agent_r1.monitor.compare import Band, band_of, curve, plot_metrics, seed_groups


def made_run(folder, values, **trainer):
    folder.mkdir()
    (folder / "config.yaml").write_text(to_yaml(Config(trainer=trainer)))
    lines = [{"step": i, "time": "t", "a/x": v} for i, v in enumerate(values, start=1)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_a_band_has_the_steps_that_all_runs_have():
    curves = [{1: 0.0, 2: 1.0, 3: 9.0}, {1: 1.0, 2: 4.0}, {}, {0: 5.0, 1: 2.0, 2: 1.0}]
    assert band_of(curves) == Band((1, 2), (1.0, 2.0), (0.0, 1.0), (2.0, 4.0))
    assert band_of([{}, {}]) == Band((), (), (), ())


def test_a_curve_passes_over_what_is_missing_or_no_number():
    lines = [{"step": 1, "x": 2.0}, {"step": 2}, {"step": 3, "x": float("nan")}]
    assert curve(lines, "x") == {1: 2.0}


def test_a_long_curve_is_a_running_mean():
    lines = [{"step": i, "x": float(i == 10)} for i in range(30)]
    # thirty points: windows of three
    assert curve(lines, "x")[10] == pytest.approx(1 / 3)
    assert curve(lines, "x")[12] == 0.0


def test_runs_that_differ_in_seed_and_name_alone_share_a_line(tmp_path):
    a = made_run(tmp_path / "a", [1.0], seed=1, experiment_name="a")
    b = made_run(tmp_path / "b", [1.0], seed=2, experiment_name="b")
    c = made_run(tmp_path / "c", [1.0], seed=1, total_epochs=7)
    assert seed_groups([a, b, c]) == {"a and 1 more": [a, b], "c": [c]}


def test_runs_of_one_name_in_two_folders_keep_their_own_lines(tmp_path):
    for parent, epochs in (("p", 1), ("q", 2)):
        (tmp_path / parent).mkdir()
        made_run(tmp_path / parent / "run", [1.0], total_epochs=epochs)
    first, second = tmp_path / "p" / "run", tmp_path / "q" / "run"
    assert seed_groups([first, second]) == {"run": [first], str(second): [second]}


@pytest.mark.parametrize(
    ("name", "begins"), [("p.png", b"\x89PNG"), ("p.svg", b"<?xml"), ("p.pdf", b"%PDF")]
)
def test_the_command_draws_the_metrics_of_all_runs(tmp_path, name, begins):
    runs = [made_run(tmp_path / f"s{i}", [0.1, 0.2 * i, 0.3], seed=i) for i in (1, 2)]
    target = tmp_path / name
    arguments = ["plot", *map(str, runs), "--metrics", "a/*", "--out", str(target)]
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 0, result.output
    assert result.output == f"a/x of 2 runs → {target}\n"
    assert target.read_bytes().startswith(begins)
    if name.endswith("svg"):
        assert "s1 and 1 more" in target.read_text()


def test_mistakes_are_named(tmp_path):
    run = made_run(tmp_path / "a", [1.0])
    with pytest.raises(DataError, match="no metric is called 'b'; there are a/x"):
        plot_metrics([run], ["b"], tmp_path / "p.png")
    with pytest.raises(DataError, match=r"has to end in one of \.png"):
        plot_metrics([run], ["a/x"], tmp_path / "p.txt")
    with pytest.raises(DataError, match="cannot be written"):
        plot_metrics([run], ["a/x"], tmp_path / "absent" / "p.png")
