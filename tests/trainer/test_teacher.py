"""Distillation in a run: a local teacher, a server, and beside an outcome reward."""

import json

import httpx
import pytest
import torch

from agent_r1.errors import ConfigError, EngineError
from agent_r1.testing import byte_tokenizer, tiny_model
from agent_r1.trainer.build import train
from agent_r1.trainer.teacher import LocalTeacher, ServerTeacher, require_same_tokens

from .test_worker import make_batch
from .test_worker import model as model_of


@pytest.fixture(scope="module")
def teacher_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher")
    torch.manual_seed(7)
    tiny_model().save_pretrained(folder)
    byte_tokenizer(chat_template=None).save_pretrained(folder)
    return folder


def metrics(config):
    lines = (config.trainer.run_dir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def divergences(config):
    name = "distillation/reverse_kl"
    return [line[name] for line in metrics(config) if name in line]


def test_the_student_comes_to_behave_as_a_teacher_that_was_trained_by_reward(toy_config):
    """The reward is logged of both, and only the teacher was trained by it."""
    steps = "trainer.total_training_steps=25"
    teacher = toy_config(steps, run="teacher")
    train(teacher)
    folder = teacher.trainer.run_dir / "checkpoints" / "step-000025" / "policy"
    student = toy_config(
        steps,
        "algorithm.adv_estimator=opd",
        f"algorithm.distillation.teacher={folder}",
        run="student",
    )
    train(student)
    rewards = {
        c.trainer.run_dir.name: [m["critic/rewards/mean"] for m in metrics(c)[1:]]
        for c in (teacher, student)
    }
    start = rewards["student"][0]
    gained = {name: sum(found[-3:]) / 3 - start for name, found in rewards.items()}
    assert gained["teacher"] > 0.2
    assert gained["student"] > 0.5 * gained["teacher"]


def test_a_teacher_beside_a_reward_is_weighed(toy_config, teacher_folder):
    """With a weight of 0 the run is the one without a teacher, to the last bit."""
    settings = ["trainer.total_training_steps=2"]
    taught = [*settings, f"algorithm.distillation.teacher={teacher_folder}"]
    runs = {
        "alone": toy_config(*settings, run="alone"),
        "zero": toy_config(*taught, "algorithm.distillation.coef=0", run="zero"),
        "one": toy_config(*taught, run="one"),
    }
    norms = {}
    for name, config in runs.items():
        train(config)
        norms[name] = [line["actor/grad_norm"] for line in metrics(config)[1:]]
    assert norms["alone"] == norms["zero"] != norms["one"]


def test_a_teacher_that_is_the_student_teaches_nothing(toy_config, toy_model):
    config = toy_config(
        "algorithm.adv_estimator=opd",
        f"algorithm.distillation.teacher={toy_model}",
        "trainer.total_training_steps=1",
    )
    train(config)
    assert divergences(config)[0] == pytest.approx(0.0, abs=1e-6)


def test_a_server_gives_what_the_model_itself_gives(tmp_path):
    model, batch = model_of(), make_batch()
    local = LocalTeacher(model, temperature=1.0, max_tokens=64).logprobs(batch)

    def answer(request):
        ids = json.loads(request.content)["prompt"]
        logits = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        places = [{str(t): {"logprob": float(logits[i, t])}} for i, t in enumerate(ids[1:])]
        return httpx.Response(200, json={"choices": [{"prompt_logprobs": [None, *places]}]})

    server = ServerTeacher("http://teacher/v1", "big", transport=httpx.MockTransport(answer))
    found = server.logprobs(batch)
    assert torch.allclose(found, local, atol=1e-4)
    assert bool((found[~batch.loss_mask] == 0).all()) and bool((found[batch.loss_mask] < 0).all())


def test_a_server_without_log_probabilities_is_named():
    transport = httpx.MockTransport(lambda _: httpx.Response(200, json={"choices": [{}]}))
    server = ServerTeacher("http://teacher/v1", "big", transport=transport)
    with pytest.raises(EngineError, match="prompt_logprobs, such as vLLM"):
        server.logprobs(make_batch())


def test_a_teacher_of_another_family_is_refused(teacher_folder):
    class Other:
        def get_vocab(self):
            return {"a": 0, "word": 1}

    with pytest.raises(ConfigError, match="reads token ids otherwise"):
        require_same_tokens(Other(), str(teacher_folder), trust_remote_code=False)
    require_same_tokens(byte_tokenizer(), str(teacher_folder), trust_remote_code=False)


def test_opd_without_a_teacher_is_a_mistake_of_the_configuration(toy_config):
    with pytest.raises(ConfigError, match="opd needs a teacher"):
        toy_config("algorithm.adv_estimator=opd")
