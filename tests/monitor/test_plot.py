"""The curve is drawn from what the run wrote, whatever of it is there."""

import json
import math

import pytest
from matplotlib.figure import Figure

from agent_r1.errors import DataError
from agent_r1.monitor import plot
from agent_r1.monitor.plot import plot_curve

PNG = b"\x89PNG\r\n"


@pytest.fixture
def drawn(monkeypatch):
    """The figure that was saved, besides the file."""
    figures = []
    real = Figure.savefig

    def savefig(self, *args, **kwargs):
        figures.append(self)
        return real(self, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", savefig)
    return figures


def write(folder, lines):
    text = "".join(json.dumps({"step": i, "time": "t", **line}) + "\n" for i, line in lines)
    (folder / "metrics.jsonl").write_text(text)


def titles(figure):
    return [axis.get_title(loc="left") for axis in figure.axes if axis.get_title(loc="left")]


def lines_of(figure):
    return {line.get_label(): line for axis in figure.axes for line in axis.lines}


def test_a_run_of_reinforcement_learning_has_four_panels(tmp_path, drawn):
    write(
        tmp_path,
        [
            (
                i,
                {
                    "rollout/success": i / 50,
                    "critic/rewards/mean": i / 25 - 1,
                    "rollout/tool_call_share": 1.0,
                    "tool/success": 0.9,
                    "response_length/mean": 40.0,
                    "num_turns/mean": 2.0,
                    "actor/entropy": 0.5,
                    "actor/ppo_kl": 0.001,
                }
                | ({"val-core/arithmetic/accuracy/mean@1": i / 50} if i % 10 == 0 else {}),
            )
            for i in range(50)
        ],
    )
    path = plot_curve(tmp_path)
    assert path == tmp_path / "curve.png" and path.read_bytes().startswith(PNG)
    (figure,) = drawn
    assert titles(figure) == [
        "Success and reward",
        "Tool use",
        "Length of a trajectory",
        "Entropy and KL",
    ]
    validation = lines_of(figure)["validation"]
    assert list(validation.get_xdata()) == [0, 10, 20, 30, 40]
    assert list(validation.get_ydata()) == [0, 0.2, 0.4, 0.6, 0.8]


def test_a_cold_start_has_the_panel_of_its_loss(tmp_path, drawn):
    write(tmp_path, [(i, {"train/loss": 1 / (i + 1)}) for i in range(5)])
    plot_curve(tmp_path)
    assert titles(drawn[0]) == ["Loss of the cold start"]
    assert list(lines_of(drawn[0])["training"].get_ydata()) == [1, 1 / 2, 1 / 3, 1 / 4, 1 / 5]


def test_a_reward_that_is_the_success_is_not_drawn_twice(tmp_path, drawn):
    write(tmp_path, [(i, {"rollout/success": i / 3, "critic/rewards/mean": i / 3}) for i in (1, 2)])
    plot_curve(tmp_path)
    assert list(lines_of(drawn[0])) == ["success, sampled in training"]
    assert titles(drawn[0]) == ["Success"]


def test_a_second_axis_for_nothing_is_not_drawn(tmp_path, drawn):
    rows = [(i, {"actor/entropy": 0.5, "actor/ppo_kl": kl}) for i, kl in ((1, 0.0), (2, 1e-9))]
    write(tmp_path, rows)
    plot_curve(tmp_path)
    assert list(lines_of(drawn[0])) == ["entropy (nats)"] and len(drawn[0].axes) == 1
    assert titles(drawn[0]) == ["Entropy"]
    write(tmp_path, [*rows, (3, {"actor/entropy": 0.5, "actor/ppo_kl": 0.01})])
    plot_curve(tmp_path)
    assert "KL to the policy before the step" in lines_of(drawn[1])
    assert titles(drawn[1])[0] == "Entropy and KL"


def test_sizes_start_at_zero(tmp_path, drawn):
    write(tmp_path, [(i, {"response_length/mean": 40 + i, "num_turns/mean": 2}) for i in (1, 2)])
    plot_curve(tmp_path)
    assert [axis.get_ylim()[0] for axis in drawn[0].axes] == [0, 0]


def test_values_that_are_no_numbers_are_left_out(tmp_path, drawn):
    write(tmp_path, [(1, {"train/loss": 2.0}), (2, {"train/loss": "nan"}), (3, {"train/loss": 1})])
    plot_curve(tmp_path)
    assert list(lines_of(drawn[0])["training"].get_xdata()) == [1, 3]


def test_one_step_can_be_drawn(tmp_path):
    write(tmp_path, [(1, {"rollout/success": 0.5, "critic/rewards/mean": 0.5})])
    assert plot_curve(tmp_path, tmp_path / "other.png").read_bytes().startswith(PNG)


@pytest.mark.parametrize("lines", [[], [(1, {"unknown": 1.0})], [(1, {"train/loss": "nan"})]])
def test_nothing_to_draw_is_an_error(tmp_path, lines):
    write(tmp_path, lines)
    with pytest.raises(DataError, match="no metrics to draw"):
        plot_curve(tmp_path)


def test_a_folder_without_metrics_is_an_error(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        plot_curve(tmp_path)


def test_the_running_mean_keeps_a_constant_and_the_length():
    assert plot.smooth([2.0] * 50) == [2.0] * 50
    smooth = plot.smooth([float(i % 2) for i in range(200)])
    assert len(smooth) == 200
    assert all(math.isclose(value, 0.5, abs_tol=0.1) for value in smooth[10:-10])
