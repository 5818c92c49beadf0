"""The synchronous loop gives the numbers that it always gave.

``golden/*.json`` were written by the loop before sampling and learning could overlap
(``python -m tests.trainer.test_golden`` writes them anew, on purpose only). On a machine like
the one that wrote them everything must agree to the last bit. Elsewhere another processor
sums in another order, which an optimizer's first step can amplify: there the metrics of the
first update must agree to four digits.
"""

import hashlib
import json
import sys
import tempfile
from pathlib import Path

import pytest
import torch

from agent_r1.config.load import load_config
from agent_r1.testing import byte_tokenizer, tiny_model
from agent_r1.trainer.build import train
from agent_r1.trainer.checkpoint import CheckpointStore, load_state

FOLDER = Path(__file__).with_name("golden")
TOY = Path(__file__).with_name("toy.py")

RUNS = {
    "grpo": ["algorithm.adv_estimator=grpo", "actor_rollout_ref.actor.ppo_mini_batch_size=2"],
    "gae": ["algorithm.adv_estimator=gae", "actor_rollout_ref.actor.ppo_epochs=2"],
    "remax": ["algorithm.adv_estimator=remax", "actor_rollout_ref.actor.use_kl_loss=true"],
    "dynamic": [
        "algorithm.filter_groups={enable: true, metric: accuracy, max_num_gen_batches: 3}",
        "algorithm.rollout_correction.rollout_is=token",
    ],
}
TIMES = ("timing_s/", "perf/", "time")
LATER = ("async/", "curriculum/", "weights/")
"""Metrics that came with overlapping; the numbers of before stand without them."""


def run(name, folder):
    model = folder / "model"
    tiny_model().save_pretrained(model)
    byte_tokenizer(chat_template=None).save_pretrained(model)
    settings = [
        f"data.train_files=generator:{TOY}:tasks",
        f"data.val_files=generator:{TOY}:tasks",
        "data.val_generator_kwargs={count: 4}",
        "data.train_batch_size=4",
        "data.max_prompt_length=16",
        "data.max_response_length=40",
        f"actor_rollout_ref.model.path={model}",
        "actor_rollout_ref.actor.optim.lr=1e-2",
        "actor_rollout_ref.rollout.n=4",
        "actor_rollout_ref.rollout.response_length=12",
        f"actor_rollout_ref.rollout.stop_token_ids={list(range(64))}",
        "critic.optim.lr=1e-2",
        f"tool.env={TOY}:ToyEnv",
        "tool.tools=[]",
        "tool.max_turns=3",
        f"reward.name={TOY}:likes_low_bytes",
        "trainer.total_training_steps=3",
        "trainer.test_freq=2",
        "trainer.logger=[]",
        "trainer.device=cpu",
        "trainer.num_threads=1",
        f"trainer.default_local_dir={folder / 'run'}",
    ]
    return train(load_config(None, [*settings, *RUNS[name]], environ={}))


def record(folder):
    """What the run came to: metrics without times, and a digest of every tensor saved."""
    state = load_state(CheckpointStore(folder / "checkpoints").latest())["worker"]
    digest = hashlib.sha256()
    for part in ("actor", "critic"):
        for key, tensor in sorted(((state[part] or {}).get("module") or {}).items()):
            digest.update(key.encode() + tensor.contiguous().numpy().tobytes())
    metrics = []
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        metrics.append({k: v for k, v in record.items() if not k.startswith((*TIMES, *LATER))})
    metrics = [{k: v for k, v in m.items() if "seconds" not in k} for m in metrics]
    return {"machine": machine(), "weights": digest.hexdigest(), "metrics": metrics}


def machine():
    """What decides in which order a processor sums, as far as it is known."""
    found = [torch.__version__, torch.backends.cpu.get_cpu_capability()]
    info = Path("/proc/cpuinfo")
    if info.exists() and "amx_tile" in info.read_text():
        found.append("AMX")
    return found


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", RUNS)
def test_the_synchronous_loop_gives_the_numbers_that_it_always_gave(name, tmp_path, one_thread):
    golden = json.loads((FOLDER / f"{name}.json").read_text())
    found = record(run(name, tmp_path))
    assert [sorted(m) for m in found["metrics"]] == [sorted(m) for m in golden["metrics"]]
    for mine, theirs in list(zip(found["metrics"], golden["metrics"], strict=True))[:2]:
        assert mine == pytest.approx(theirs, rel=1e-4, abs=1e-5)
    if found["machine"] == golden["machine"]:
        assert found["metrics"] == golden["metrics"]
        assert found["weights"] == golden["weights"]


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name in sys.argv[1:] or RUNS:
        with tempfile.TemporaryDirectory() as folder:
            result = record(run(name, Path(folder)))
        (FOLDER / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
