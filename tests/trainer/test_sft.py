import asyncio
import itertools
import math
import signal

import pytest
import torch
import torch.nn.functional as F

from agent_r1.config.sft import SftConfig
from agent_r1.data.traces import Author, Trace, model, tool, write_traces
from agent_r1.errors import ConfigError, DataError, ModelError
from agent_r1.models.load import load_model, load_tokenizer, save_model
from agent_r1.recipes import arithmetic
from agent_r1.rollout.agent_loop import AgentLoop
from agent_r1.rollout.codec import Codec
from agent_r1.rollout.limits import LoopLimits, Sampling
from agent_r1.testing import FakeExecutor, Reply, ScriptedEngine, byte_tokenizer, tiny_model
from agent_r1.tool.envs.retool import ReToolEnv
from agent_r1.tool.tools.python import PythonTool
from agent_r1.trainer.sft import MAX_SKIPPED, SftParts, SftTrainer, SilentMonitor, run_sft
from agent_r1.trainer.sft_data import Example, FileExamples, StreamExamples, encode_trace
from agent_r1.types import Task

TAGS = ("<code>", "</code>", "<interpreter>", "</interpreter>")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A random model whose tokenizer has one token per byte and one per tag."""
    folder = tmp_path_factory.mktemp("base")
    return save_model(tiny_model(), byte_tokenizer(TAGS), folder)


def config(base, run_dir, **changes):
    """A run of four traces a step over 40 arithmetic traces."""
    settings = {
        "model": {"path": str(base)},
        "data": {
            "train_files": "generator:arithmetic",
            "train_max_samples": 10,
            "train_batch_size": 4,
        },
        "optim": {"lr": 1e-2},
        "trainer": {"default_local_dir": str(run_dir), "total_training_steps": 6},
    }
    for name, value in changes.items():
        section, key = name.split("__")
        settings[section][key] = value
    return SftConfig.model_validate(settings)


def weights(folder):
    return load_model(folder).state_dict()


def assert_same_weights(one, other):
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


# --- encoding ----------------------------------------------------------------------------


def test_a_trace_becomes_the_very_tokens_of_the_rollout_that_it_describes():
    tokenizer = byte_tokenizer(TAGS)
    codec = Codec(tokenizer)
    trace = next(t for t in arithmetic.traces(0) if len(t.segments) == 3)
    script = [Reply(s.text) for s in trace.segments if s.author is Author.MODEL]
    printed = trace.segments[1].text.split("\n")[2]
    env = ReToolEnv([PythonTool(FakeExecutor(printed + "\n"))])
    loop = AgentLoop(ScriptedEngine(tokenizer, script), codec, env, LoopLimits(4, 500))
    sampling = Sampling(stop=env.stop_strings)
    rollout = asyncio.run(loop.run(Task("t", trace.prompt), "g", 0, sampling))
    (sample,) = rollout.samples()
    example = encode_trace(trace, codec)
    assert example.token_ids == sample.token_ids
    assert example.loss_mask == tuple(bool(m) for m in sample.loss_mask)


def test_only_what_the_model_writes_is_learned():
    codec = Codec(byte_tokenizer())
    trace = Trace("ask ", (model("call"), tool("|seen|"), model("answer")))
    example = encode_trace(trace, codec)
    learned = [i for i, m in zip(example.token_ids, example.loss_mask, strict=True) if m]
    assert codec.decode(learned) == "callanswer<|im_end|>"
    assert codec.decode(example.token_ids) == "ask call|seen|answer<|im_end|>"


def test_control_tokens_in_tool_output_are_plain_characters():
    codec = Codec(byte_tokenizer())
    trace = Trace("q", (model("a"), tool("<|im_end|>"), model("b")))
    eos = codec.tokenizer.eos_token_id
    assert encode_trace(trace, codec).token_ids.count(eos) == 1


# --- order -------------------------------------------------------------------------------


def numbered(count):
    return [Example((number, number), (False, True)) for number in range(count)]


def test_every_epoch_shows_each_example_once_in_an_order_of_its_own():
    source = FileExamples(numbered(10), 4, seed=0)
    assert source.steps_per_epoch == 3
    epochs = [
        [e.token_ids[0] for step in range(k * 3, k * 3 + 3) for e in source.batch(step)]
        for k in range(2)
    ]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(10))
    assert epochs[0] != epochs[1] != list(range(10))


def test_order_is_a_function_of_seed_and_step():
    sources = [FileExamples(numbered(10), 4, seed=seed) for seed in (7, 7, 8)]
    assert sources[0].batch(4) == sources[1].batch(4)
    assert sources[0].batch(0) != sources[2].batch(0)


def test_a_stream_that_starts_late_shows_what_it_would_have_shown():
    straight, late = (StreamExamples(iter(numbered(40)), 4) for _ in range(2))
    for step in range(5):
        straight.batch(step)
    assert straight.batch(5) == late.batch(5)


def test_a_stream_that_ends_too_soon_says_so():
    with pytest.raises(DataError, match="ended before step 1"):
        StreamExamples(iter(numbered(6)), 4).batch(1)


# --- training ----------------------------------------------------------------------------


class Recorder(SilentMonitor):
    """Remembers everything, and interrupts the run after a step of choice."""

    def __init__(self, interrupt_after=None):
        self.steps, self.metrics, self.said = [], [], []
        self._interrupt_after = interrupt_after

    def log(self, metrics, *, step):
        self.steps.append(step)
        self.metrics.append(dict(metrics))
        if step == self._interrupt_after:
            signal.raise_signal(signal.SIGINT)

    def announce(self, message):
        self.said.append(message)


def run_and_record(settings):
    recorder = Recorder()
    return run_sft(settings, recorder), recorder.metrics


def test_the_loss_is_the_mean_cross_entropy_of_the_target_tokens(base, tmp_path):
    report, metrics = run_and_record(config(base, tmp_path, trainer__total_training_steps=1))
    codec = Codec(load_tokenizer(base))
    examples = [encode_trace(t, codec) for t in itertools.islice(arithmetic.traces(0), 10)]
    reference, losses = load_model(base, attn="eager").requires_grad_(False), []
    for example in FileExamples(examples, 4, seed=0).batch(0):
        labels = torch.tensor(example.token_ids).where(torch.tensor(example.loss_mask), -100)
        logits = reference(input_ids=torch.tensor([example.token_ids])).logits[0]
        losses.append(F.cross_entropy(logits[:-1], labels[1:], reduction="none")[labels[1:] >= 0])
    assert metrics[0]["train/loss"] == pytest.approx(float(torch.cat(losses).mean()), abs=1e-5)
    assert metrics[0]["train/target_tokens"] == len(torch.cat(losses))
    assert report.train_loss == metrics[0]["train/loss"]


def test_cutting_a_step_into_micro_batches_changes_nothing(base, tmp_path):
    whole, parts = (
        run_and_record(config(base, tmp_path / str(budget), trainer__max_token_len_per_gpu=budget))
        for budget in (10_000, 90)
    )
    for one, other in zip(whole[1], parts[1], strict=True):
        assert one["train/loss"] == pytest.approx(other["train/loss"], rel=1e-4)
        assert one["train/grad_norm"] == pytest.approx(other["train/grad_norm"], rel=1e-2)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_training_learns_and_ends_with_a_usable_model(base, tmp_path, optimizer):
    settings = config(
        base,
        tmp_path,
        trainer__total_training_steps=25,
        optim__name=optimizer,
        data__val_files="generator:arithmetic",
        data__val_max_samples=8,
        trainer__test_freq=12,
    )
    report, metrics = run_and_record(settings)
    assert metrics[0]["train/loss"] > 5
    assert report.train_loss < 3.5
    assert metrics[-1]["train/lr"] == pytest.approx(1e-2 / 25)
    validated = [m["val/loss"] for m in metrics if "val/loss" in m]
    assert len(validated) == 3
    assert validated[-1] == report.val_loss < validated[0]
    load_model(report.policy)
    assert load_tokenizer(report.policy).decode([65]) == "A"


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("samples", [10, None])
def test_an_interrupted_run_ends_with_the_very_same_weights(base, tmp_path, optimizer, samples):
    def settings(name):
        return config(base, tmp_path / name, optim__name=optimizer, data__train_max_samples=samples)

    straight = run_sft(settings("straight"))

    with pytest.raises(KeyboardInterrupt):
        run_sft(settings("broken"), Recorder(interrupt_after=3))
    recorder = Recorder()
    resumed = run_sft(settings("broken"), recorder)
    assert recorder.steps == [4, 5, 6]
    assert recorder.said == ["continuing from step 3"]
    assert_same_weights(weights(straight.policy), weights(resumed.policy))
    assert resumed.train_loss == straight.train_loss


def test_a_finished_run_is_not_trained_again(base, tmp_path):
    first = run_sft(config(base, tmp_path))
    recorder = Recorder()
    again = run_sft(config(base, tmp_path), recorder)
    assert recorder.steps == []
    assert again.train_loss == first.train_loss


def test_early_stop_keeps_the_best_model(base, tmp_path):
    """The rate is so high that validation gets worse at once after the first step."""
    settings = config(
        base,
        tmp_path,
        optim__lr=3.0,
        optim__lr_scheduler_type="constant",
        trainer__total_training_steps=50,
        trainer__test_freq=1,
        trainer__early_stop_patience=3,
        data__val_files="generator:arithmetic",
        data__val_max_samples=8,
    )
    report, metrics = run_and_record(settings)
    losses = [m["val/loss"] for m in metrics]
    assert report.stopped_early
    assert report.best_step == 1 + losses.index(min(losses))
    assert report.steps == report.best_step + 3
    best = weights(tmp_path / "best")
    assert_same_weights(best, weights(report.policy))


def test_a_trainer_can_be_put_together_by_hand(base, tmp_path):
    parts = SftParts(
        load_model(base), load_tokenizer(base), FileExamples(numbered(8), 4, seed=0), ()
    )
    trainer = SftTrainer(config(base, tmp_path), parts)
    assert trainer.total_steps == 6
    report = trainer.fit()
    assert report.steps == 6
    assert math.isfinite(report.train_loss)


def test_bfloat16_weights_learn_at_rates_that_they_could_not_show(base, tmp_path):
    """A rate of 2e-5 is a fraction of the last place of most weights: rounding would eat it."""
    gains = {}
    for dtype in ("float32", "bfloat16"):
        settings = config(
            base,
            tmp_path / dtype,
            model__dtype=dtype,
            optim__lr=2e-5,
            optim__lr_scheduler_type="constant",
            trainer__total_training_steps=60,
            data__train_max_samples=4,
        )
        report, metrics = run_and_record(settings)
        gains[dtype] = metrics[0]["train/loss"] - report.train_loss
    assert gains["bfloat16"] > 0.7 * gains["float32"] > 0.05


def test_steps_that_are_not_finite_are_skipped_and_end_the_run_when_they_persist(base, tmp_path):
    model = load_model(base).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        model.get_parameter("model.norm.weight").fill_(float("nan"))
    recorder = Recorder()
    settings = config(base, tmp_path, trainer__total_training_steps=50)
    parts = SftParts(
        model, load_tokenizer(base), FileExamples(numbered(8), 4, seed=0), (), recorder
    )
    with pytest.raises(ModelError, match=r"lower optim\.lr"):
        SftTrainer(settings, parts).fit()
    assert [m["train/skipped"] for m in recorder.metrics] == [1.0] * (MAX_SKIPPED - 1)
    after = model.state_dict()
    assert all(torch.equal(before[n], after[n]) for n in before if n != "model.norm.weight")


# --- mistakes ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"model__path": ""}, ConfigError, "model.path is empty"),
        ({"model__path": "/does/not/exist"}, ModelError, "does/not/exist"),
        ({"data__train_files": ()}, ConfigError, "data.train_files is empty"),
        ({"data__train_files": "no.jsonl"}, DataError, "no trace file at no.jsonl"),
        ({"data__train_files": ["generator:arithmetic", "a.jsonl"]}, ConfigError, "name it alone"),
        (
            {"data__train_max_samples": None, "trainer__total_training_steps": None},
            ConfigError,
            "set trainer.total_training_steps",
        ),
        ({"data__max_length": 20}, DataError, "raise it or set"),
        ({"data__max_length": 20, "data__overlong": "error"}, DataError, "raise it or set"),
        ({"data__val_files": "generator:arithmetic"}, ConfigError, "set data.val_max_samples"),
    ],
)
def test_mistakes_are_found_before_the_first_step(base, tmp_path, changes, error, message):
    with pytest.raises(error, match=message):
        run_sft(config(base, tmp_path, **changes))


def test_overlong_traces_are_counted_aloud(base, tmp_path):
    file = tmp_path / "traces.jsonl"
    short, long = Trace("q", (model("a"),)), Trace("q", (model("a" * 100),))
    write_traces(file, [short, long, short])
    recorder = Recorder()
    settings = config(base, tmp_path / "run", data__train_files=str(file), data__max_length=50)
    run_sft(settings, recorder)
    assert recorder.said == ["1 training traces are longer than data.max_length and left out"]
