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
    """Another model than the student, and surer of itself."""
    folder = tmp_path_factory.mktemp("teacher")
    made = tiny_model(seed=7)
    with torch.no_grad():
        made.get_input_embeddings().weight.mul_(10.0)
    made.save_pretrained(folder)
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


@pytest.mark.slow
def test_whole_distributions_bring_the_student_to_the_teacher_sooner(toy_config, teacher_folder):
    """In 40 steps the divergence all but vanishes, which one token a position does not reach."""
    left = {}
    for form in ("sampled", "topk", "exact"):
        config = toy_config(
            "algorithm.adv_estimator=opd",
            f"algorithm.distillation.form={form}",
            f"algorithm.distillation.teacher={teacher_folder}",
            "trainer.total_training_steps=40",
            run=form,
        )
        train(config)
        found = divergences(config)
        left[form] = sum(found[-8:]) / 8 / found[0]
    assert left["topk"] < 0.2 and left["exact"] < 0.2
    assert left["sampled"] > 0.5


@pytest.mark.parametrize("form", ["topk", "exact"])
def test_beside_a_reward_a_divergence_of_weight_0_changes_nothing(toy_config, teacher_folder, form):
    settings = ["trainer.total_training_steps=2"]
    taught = [
        *settings,
        f"algorithm.distillation.teacher={teacher_folder}",
        f"algorithm.distillation.form={form}",
    ]
    norms = {}
    for name, config in {
        "alone": toy_config(*settings, run="alone"),
        "zero": toy_config(*taught, "algorithm.distillation.coef=0", run="zero"),
        "one": toy_config(*taught, run="one"),
    }.items():
        train(config)
        norms[name] = [line["actor/grad_norm"] for line in metrics(config)[1:]]
    assert norms["alone"] == norms["zero"] != norms["one"]


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


def test_a_server_tells_the_tokens_that_the_model_itself_holds_for_best():
    model, batch = model_of(), make_batch()
    local = LocalTeacher(model, temperature=1.0, max_tokens=64).view(batch, 5)

    def answer(request):
        body = json.loads(request.content)
        ids, k = body["prompt"], body["prompt_logprobs"]
        logits = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        places = []
        for i, token in enumerate(ids[1:]):
            told = {*logits[i].topk(k).indices.tolist(), token}
            places.append({str(t): {"logprob": float(logits[i, t])} for t in told})
        return httpx.Response(200, json={"choices": [{"prompt_logprobs": [None, *places]}]})

    server = ServerTeacher("http://teacher/v1", "big", transport=httpx.MockTransport(answer))
    found = server.view(batch, 5)
    mask = batch.loss_mask
    assert torch.equal(found.ids[mask].long(), local.ids[mask])
    assert torch.allclose(found.logprobs[mask], local.logprobs[mask], atol=1e-4)


def test_a_server_that_tells_too_little_is_named():
    place = {"3": {"logprob": -1.0}}

    def answer(request):
        ids = json.loads(request.content)["prompt"]
        told = [None, *[place] * (len(ids) - 1)]
        return httpx.Response(200, json={"choices": [{"prompt_logprobs": told}]})

    server = ServerTeacher("http://teacher/v1", "big", transport=httpx.MockTransport(answer))
    with pytest.raises(EngineError, match="max-logprobs"):
        server.view(make_batch(), 5)


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


def test_whole_distributions_of_a_server_are_a_mistake_of_the_configuration(toy_config):
    with pytest.raises(ConfigError, match=r"form=topk, or use a local teacher"):
        toy_config(
            "algorithm.adv_estimator=opd",
            "algorithm.distillation.server=http://teacher/v1",
            "algorithm.distillation.form=exact",
        )
