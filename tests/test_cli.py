"""The command line as a person meets it: through a real shell."""

import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import click
import httpx
import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file, save_file

from agent_r1.cli import cli
from agent_r1.cli.base import policy_folder

COMMAND = f"{shlex.quote(sys.executable)} -m agent_r1"


def shell(line, *, cwd=None, **environ):
    """Run ``line`` in bash with ``agent-r1`` at hand."""
    script = f'agent-r1() {{ {COMMAND} "$@"; }}; {line}'
    environment = {k: v for k, v in os.environ.items() if not k.startswith("AGENT_R1_")}
    environment["AGENT_R1_PROGRESS"] = "0"  # which would be told depends on how busy a machine is
    environment["PYTHONPATH"] = str(Path(__file__).parents[1])
    return subprocess.run(
        ["bash", "-c", script],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        env=environment | environ,
    )


def resolved(line, **environ):
    done = shell(f"{line} --print-config", **environ)
    assert done.returncode == 0, done.stderr
    return yaml.safe_load(done.stdout)


def test_the_stop_string_of_the_tutorial_goes_through_a_shell():
    config = resolved("""agent-r1 train actor_rollout_ref.rollout.stop='["</code>"]'""")
    assert config["actor_rollout_ref"]["rollout"]["stop"] == ["</code>"]


def test_the_stop_string_goes_through_a_script_and_its_variables(tmp_path):
    script = tmp_path / "run.sh"
    script.write_text(
        "set -e\n"
        "STOP='</code>'\n"
        f"{COMMAND} train \\\n"
        '    actor_rollout_ref.rollout.stop="[\\"$STOP\\"]" \\\n'
        "    trainer.logger=['console','wandb'] \\\n"
        '    trainer.experiment_name=$NAME "$@"\n'
    )
    done = shell(f"NAME=x bash {script} --print-config trainer.seed=3")
    config = yaml.safe_load(done.stdout)
    assert config["actor_rollout_ref"]["rollout"]["stop"] == ["</code>"]
    assert config["trainer"]["logger"] == ["console", "wandb"]
    assert (config["trainer"]["experiment_name"], config["trainer"]["seed"]) == ("x", 3)


def test_the_stop_string_goes_through_an_environment_variable():
    line = (
        """export AGENT_R1_OVERRIDES="actor_rollout_ref.rollout.stop='[\\"</code>\\"]' """
        """trainer.seed=3"; agent-r1 train trainer.seed=4"""
    )
    config = resolved(line)
    assert config["actor_rollout_ref"]["rollout"]["stop"] == ["</code>"]
    assert config["trainer"]["seed"] == 4


def test_a_mistake_is_one_message_and_exit_code_2():
    done = shell("agent-r1 sandbox serve trainer.sead=1 actor_rollout_ref.rollout.name=vllm")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.strip() == (
        "Error: unknown key trainer.sead=1 (command line): did you mean trainer.seed?"
    )


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (
            "train trainer.sead=1 reward.name=grade tool.env=retol tool.tools=[pyton] "
            "data.train_files=[absent.parquet,here.py] data.val_files=generator:here.py:rows",
            ["trainer.seed", "model.path is not set", "grade", "did you mean 'retool'",
             "did you mean 'python'", "absent.parquet", "unknown data format"],
        ),
        (
            "train trainer.total_epochs=x actor_rollout_ref.model.path=./none "
            "data.train_files=generator:arithmetik algorithm.adv_estimator=none.py:best "
            "reward.name=weighted_sum reward.kwargs='{rewards: {mat: 1}}'",
            ["trainer.total_epochs=x", "none.py", "'mat', did you mean 'math'",
             "did you mean 'arithmetic'", "none does not exist"],
        ),
        (
            "train trainer.total_epochs=x actor_rollout_ref.model.path=owner/model "
            "envs='{a: {data: {train_files: a.csv}}, b: {tool: {env: absent.module:Shop}}}'",
            ["trainer.total_epochs=x", "absent.py:NAME", "a.csv"],
        ),
        (
            "eval tool.env=retol data.val_files=x.csv actor_rollout_ref.model.path=./none",
            ["did you mean 'retool'", "x.csv", "none does not exist"],
        ),
        ("chat tool.max_turn=2 tool.env=retol", ["max_turns", "is not set", "'retool'"]),
        (
            "sft model.path=./none data.train_files=generator:arithmetik",
            ["did you mean 'arithmetic'", "none does not exist"],
        ),
    ],
)  # fmt: skip
def test_names_and_files_are_told_with_all_other_mistakes(line, expected, tmp_path):
    (tmp_path / "here.py").write_text("raise SystemExit('imported')")
    done = shell(f"agent-r1 {line}", cwd=tmp_path)
    first, *mistakes = done.stderr.splitlines()
    assert (done.returncode, first) == (2, f"Error: {len(expected)} mistakes:")
    for part, mistake in zip(expected, mistakes, strict=True):
        assert part in mistake


def test_a_missing_setting_is_not_made_up_from_a_wrong_one():
    done = shell("agent-r1 train actor_rollout_ref.model.pat=./m data.train_files=7")
    assert done.stderr.startswith("Error: 2 mistakes:") and "is not set" not in done.stderr


def test_debug_shows_the_traceback():
    for line, environ in (
        ("agent-r1 train trainer.sead=1 --debug", {}),
        ("agent-r1 train trainer.sead=1", {"AGENT_R1_DEBUG": "1"}),
    ):
        done = shell(line, **environ)
        assert "Traceback" in done.stderr and "ConfigError" in done.stderr
        assert done.returncode == 1


def test_a_note_is_shown_and_does_not_stop_anything():
    done = shell("agent-r1 train trainer.balance_batch=True --print-config")
    assert done.returncode == 0
    assert done.stderr.startswith("note: trainer.balance_batch=true (command line) has no effect")


def test_what_is_missing_is_asked_for_with_examples():
    done = shell("agent-r1 train")
    assert done.returncode == 2
    assert "actor_rollout_ref.model.path=./my-model" in done.stderr
    assert "data.train_files=train.parquet" in done.stderr


HEAVY = "{'torch', 'transformers', 'matplotlib', 'wandb', 'pandas', 'pyarrow', 'omegaconf'}"


@pytest.mark.parametrize(
    ("arguments", "code", "heavy"),
    [
        (["--help"], 0, HEAVY),
        (["train", "--help"], 0, HEAVY),
        (["sandbox", "serve", "--help"], 0, HEAVY),
        (["train", "trainer.sead=1"], 2, HEAVY.replace(", 'omegaconf'", "")),
        (["train", "actor_rollout_ref.rollout.n=1"], 2, HEAVY.replace(", 'omegaconf'", "")),
        (["sft", "trainer.sead=1"], 2, HEAVY.replace(", 'omegaconf'", "")),
        (
            ["train", "reward.name=grade", "data.train_files=absent.parquet", "tool.env=a.b:c"],
            2,
            HEAVY.replace(", 'omegaconf'", ""),
        ),
        (["sft", "data.train_files=generator:a"], 2, HEAVY.replace(", 'omegaconf'", "")),
        (["train"], 2, HEAVY.replace(", 'omegaconf'", "")),
        (["config", "trainer.seed"], 0, HEAVY.replace(", 'omegaconf'", "")),
        (["train", "--print-config"], 0, HEAVY.replace(", 'omegaconf'", "")),
    ],
)
def test_help_and_mistakes_come_before_anything_heavy_is_imported(arguments, code, heavy):
    program = (
        "import sys\n"
        "from agent_r1.cli import main\n"
        f"sys.argv = ['agent-r1', *{arguments!r}]\n"
        "try: main()\n"
        "except SystemExit as done: code = done.code\n"
        f"print(code, sorted({heavy} & set(sys.modules)), file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stderr.splitlines()[-1] == f"{code} []"


def commands(group, path=()):
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name), command


def test_the_commands_are_those_that_are_promised():
    names = {" ".join(path) for path, _ in commands(cli)}
    assert {"train", "sft", "eval", "chat", "export", "sandbox serve", "config"} <= names


@pytest.mark.parametrize(("path", "command"), list(commands(cli)), ids=str)
def test_every_command_explains_itself(path, command):
    text = command.get_help(command.make_context("x", [], resilient_parsing=True))
    assert command.help and "--debug" in text
    for parameter in command.params:
        assert not isinstance(parameter, click.Option) or parameter.help, parameter


def test_the_configuration_can_be_piped_into_head():
    done = shell("agent-r1 config | head -1")
    assert done.stdout.startswith("data.train_files") and "Traceback" not in done.stderr


def test_a_word_that_is_no_command_is_refused():
    done = shell("agent-r1 trian")
    assert done.returncode == 2 and "No such command" in done.stderr


def test_tasks_can_be_looked_at(tmp_path):
    rows = [
        {"prompt": "What is 1 + 1?", "reward_model": {"ground_truth": "2"}, "data_source": "s"},
        {"prompt": "What is 2 + 2?", "reward_model": {"ground_truth": "4"}, "data_source": "s"},
    ]
    file = tmp_path / "tasks.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = shell(f"agent-r1 data show data.train_files={file} -n 1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("2 train tasks: 2 s\n")
    assert "What is 1 + 1?" in done.stdout and "What is 2 + 2?" not in done.stdout


def checkpoint(folder, step):
    policy = folder / "checkpoints" / f"step-{step:06}" / "policy"
    policy.mkdir(parents=True)
    (policy / "config.json").write_text(json.dumps({"step": step}))
    save_file({"weight": np.full(1, step, np.float32)}, policy / "model.safetensors")


def test_the_newest_checkpoint_is_exported(tmp_path):
    for step in (5, 1000000, 20):
        checkpoint(tmp_path / "run", step)
    done = shell(f"agent-r1 export --run {tmp_path}/run {tmp_path}/out")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == {"step": 1000000}
    assert load_file(tmp_path / "out" / "model.safetensors")["weight"] == 1000000
    again = shell(f"agent-r1 export --run {tmp_path}/run {tmp_path}/out")
    assert again.returncode == 2 and "exists already" in again.stderr


def test_a_checkpoint_of_shards_alone_is_not_asked_and_says_how_it_can_be(tmp_path):
    (tmp_path / "checkpoints/step-000002/shards").mkdir(parents=True)
    done = shell(f"agent-r1 chat --run {tmp_path} -m hello")
    assert done.returncode == 2 and "agent-r1 export --checkpoint" in done.stderr
    checkpoint(tmp_path, 1)
    assert policy_folder(tmp_path, None) == tmp_path / "checkpoints/step-000001/policy"


def test_a_run_without_checkpoint_has_nothing_to_export(tmp_path):
    done = shell(f"agent-r1 export --run {tmp_path} {tmp_path}/out")
    assert done.returncode == 2 and "no checkpoint yet" in done.stderr
    done = shell(f"agent-r1 export {tmp_path}/out")
    assert done.returncode == 2 and "--run FOLDER" in done.stderr


def test_a_run_brings_its_own_configuration(tmp_path):
    checkpoint(tmp_path, 1)
    done = shell(f"agent-r1 eval --run {tmp_path} --config x.yaml")
    assert done.returncode == 2 and "exclude each other" in done.stderr


def test_the_curve_of_a_run_is_drawn(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "train/loss": 1.0}\n')
    done = shell(f"agent-r1 plot {tmp_path}")
    assert done.returncode == 0 and (tmp_path / "curve.png").is_file()
    done = shell(f"agent-r1 plot {tmp_path}/none")
    assert done.returncode == 1 and done.stderr.startswith("Error: ")


def test_an_interruption_says_how_to_go_on():
    program = (
        "import sys\n"
        "from agent_r1 import cli\n"
        "@cli.cli.command()\n"
        "def stop():\n"
        "    with cli._resumable('runs/x'):\n"
        "        raise KeyboardInterrupt\n"
        "sys.argv = ['agent-r1', 'stop']\n"
        "cli.main()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 130
    assert done.stderr.strip() == (
        "Interrupted. What is finished is in runs/x; the same command continues there."
    )


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_the_sandbox_is_served_until_it_is_told_to_stop(stop):
    command = [sys.executable, "-m", "agent_r1", "sandbox", "serve", "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as service:
        first = service.stderr.readline()
        if "denies" in first:
            pytest.skip("this kernel cannot isolate programs")
        assert first.startswith("serving http://127.0.0.1:"), first
        url = first.split()[1]
        answer = httpx.post(
            f"{url}/run_code", json={"code": "print(6 * 7)", "language": "python"}, timeout=60
        )
        assert answer.json()["run_result"]["stdout"] == "42\n"
        assert "libtorch" not in Path(f"/proc/{service.pid}/maps").read_text()
        service.send_signal(stop)
        assert service.wait(30) == 0 and service.stderr.read() == ""


def test_a_service_needs_a_token_beyond_this_machine():
    done = shell("agent-r1 sandbox serve --host 0.0.0.0 --port 0")
    assert done.returncode == 2 and "set a token" in done.stderr


def test_a_service_runs_programs_itself():
    line = "agent-r1 sandbox serve sandbox.executor=http sandbox.endpoints=http://127.0.0.1:1"
    done = shell(line)
    assert done.returncode == 2 and "runs programs itself" in done.stderr
