"""Settings that save memory: each must give what the plain setting gives."""

import gc
import io
import weakref

import pytest
import torch

from agent_r1.config.policy import ActorConfig, OptimConfig
from agent_r1.models.lora import add_lora
from agent_r1.trainer.checkpoint import CheckpointStore
from agent_r1.trainer.worker import LocalWorker

from .test_rl import assert_equal, final_state, lines, run_of
from .test_worker import advantages_of, make_batch, model, weights


def worker(policy, *, reference=None, **optim):
    config = ActorConfig(optim=OptimConfig(lr=1e-2, **optim), ppo_max_token_len_per_gpu=60)
    return LocalWorker(policy, config, total_steps=20, reference=reference)


def lora_policy(dtype=torch.float32):
    policy = model(dtype=dtype)
    torch.manual_seed(0)
    return add_lora(policy, rank=4, alpha=8)


def train(subject, steps=3):
    batch = make_batch()
    return [subject.update_policy(batch, None, advantages_of(batch)) for _ in range(steps)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_offloaded_masters_and_moments_change_no_bit(dtype):
    plain, offloaded = worker(model(dtype=dtype)), worker(model(dtype=dtype), offload=True)
    assert train(plain) == train(offloaded)
    assert torch.equal(weights(plain), weights(offloaded))


@pytest.mark.parametrize("offload", [True, False])
def test_a_worker_that_is_gone_leaves_no_master_behind(offload):
    subject = worker(model(dtype=torch.bfloat16), offload=offload)
    train(subject, 1)
    masters = [weakref.ref(slot.master) for slot in subject._actor._slots]
    del subject
    gc.collect()
    assert [master for master in masters if master() is not None] == []


@pytest.mark.parametrize("offload", [True, False])
def test_a_saved_offloaded_run_continues_with_the_same_bits(offload):
    whole, first = (worker(model(dtype=torch.bfloat16), offload=offload) for _ in range(2))
    train(whole, 4)
    train(first, 2)
    buffer = io.BytesIO()
    torch.save(first.state_dict(), buffer)
    buffer.seek(0)
    second = worker(model(seed=5, dtype=torch.bfloat16), offload=offload)
    second.load_state_dict(torch.load(buffer, weights_only=True))
    train(second, 2)
    assert torch.equal(weights(whole), weights(second))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_adapters_learn_and_the_base_stays(dtype):
    subject = worker(lora_policy(dtype))
    before = {n: p.clone() for n, p in subject.policy.named_parameters()}
    metrics = train(subject)
    assert all(m["actor/updates"] == 1 and m["actor/grad_norm"] > 0 for m in metrics)
    for name, parameter in subject.policy.named_parameters():
        assert torch.equal(parameter, before[name]) == (".lora_" not in name), name


def test_the_gradient_of_adapters_is_that_of_the_weights_they_update():
    """B starts at zero, so dL/dB = (alpha / r) dL/dW A^T and dL/dA = 0."""
    batch = make_batch()
    plain, adapted = model(), lora_policy()
    for module in (plain, adapted):
        subject = LocalWorker(module, ActorConfig(optim=OptimConfig(lr=1e-9)))
        subject._actor.step = lambda: None
        result = subject._token_logprobs(module, batch)
        (result.logprobs * advantages_of(batch)).sum().backward()
    layer = adapted.model.layers[1].mlp.down_proj
    gradient = plain.model.layers[1].mlp.down_proj.weight.grad
    expected = (8 / 4) * gradient @ layer.lora_A["default"].weight.T
    torch.testing.assert_close(layer.lora_B["default"].weight.grad, expected)
    assert not layer.lora_A["default"].weight.grad.any()


def test_the_reference_of_adapters_is_their_base_at_every_step():
    batch = make_batch()
    subject = worker(lora_policy())
    base = subject.logprobs(batch)
    train(subject)
    assert torch.equal(subject.ref_logprobs(batch), base)
    assert not torch.equal(subject.logprobs(batch), base)


def test_a_checkpoint_of_adapters_holds_no_base_and_continues_exactly():
    whole, first = worker(lora_policy()), worker(lora_policy())
    train(whole, 4)
    train(first, 2)
    state = first.state_dict()
    assert state["actor"]["module"] and all(".lora_" in n for n in state["actor"]["module"])
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    second = worker(lora_policy())
    second.load_state_dict(torch.load(buffer, weights_only=True))
    train(second, 2)
    assert torch.equal(weights(whole), weights(second))


@pytest.mark.slow  # torchao compiles its step
@pytest.mark.filterwarnings("ignore")
def test_eight_bit_moments_stay_close_to_exact_ones(tmp_path):
    pytest.importorskip("torchao")
    exact, eight = worker(model(seed=3)), worker(model(seed=3), name="adamw_8bit")
    start = weights(exact).clone()
    train(exact, 5)
    train(eight, 5)
    moved, difference = weights(exact) - start, weights(eight) - weights(exact)
    assert 0 < difference.norm() < 0.2 * moved.norm()
    torch.save(eight.state_dict(), tmp_path / "state.pt")
    again = worker(model(seed=4), name="adamw_8bit")
    again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    train(eight, 1)
    train(again, 1)
    torch.testing.assert_close(weights(again), weights(eight), rtol=0, atol=1e-7)


WHOLE_RUNS = {
    "adapters, KL to their base": [
        "actor_rollout_ref.model.lora_rank=4",
        "actor_rollout_ref.actor.use_kl_loss=true",
    ],
    "adapters of policy and critic": [
        "algorithm.adv_estimator=gae",
        "actor_rollout_ref.model.lora_rank=4",
        "critic.model.lora_rank=4",
    ],
    "bfloat16, offloaded": [
        "actor_rollout_ref.model.dtype=bfloat16",
        "actor_rollout_ref.actor.optim.offload=true",
        "actor_rollout_ref.actor.use_kl_loss=true",
        "actor_rollout_ref.ref.offload=true",
    ],
}


@pytest.mark.parametrize("name", WHOLE_RUNS)
def test_a_run_resumes_to_the_same_numbers_and_exports_a_plain_policy(toy_config, name):
    from transformers import AutoModelForCausalLM

    settings = [*WHOLE_RUNS[name], "trainer.test_freq=-1", "data.val_files=[]"]
    whole = run_of(toy_config, *settings, run="whole")
    run_of(toy_config, *settings, "trainer.total_training_steps=2", run="parts")
    parts = run_of(toy_config, *settings, run="parts")
    assert_equal(final_state(whole), final_state(parts))
    assert lines(whole, "metrics.jsonl") == lines(parts, "metrics.jsonl")
    metrics = lines(whole, "metrics.jsonl")
    limit = 0.1 if "bfloat16" in name else 1e-4
    assert all(m["training/logprob_diff_mean"] < limit for m in metrics if m["step"])
    policy = CheckpointStore(whole / "checkpoints").latest() / "policy"
    plain = AutoModelForCausalLM.from_pretrained(policy)
    start = AutoModelForCausalLM.from_pretrained(toy_config().actor_rollout_ref.model.path)
    assert not torch.equal(
        plain.model.layers[0].mlp.up_proj.weight, start.model.layers[0].mlp.up_proj.weight
    )
    assert (policy / "adapter").exists() == ("adapters" in name)
