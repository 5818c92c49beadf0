"""Produce ``fixtures/oracle.json``: what other systems compute from random masked inputs.

This is the only file that calls them, and it is not run by the tests. In an environment
with torch, verl (a source checkout on PYTHONPATH, its algorithm module needs tensordict,
omegaconf, hydra-core, ray, codetiming, pyvers) and trl::

    PYTHONPATH=path/to/verl python tests/algorithms/make_oracle.py --verl-commit SHA

Everything is float64 except what TRL's trainers compute inside a training step.
"""

import argparse
import collections
import json
import tempfile
import types
from pathlib import Path

import numpy as np
import torch

SEED = 20_240
ROWS, WIDTH = 8, 10
FIXTURE = Path(__file__).parent / "fixtures" / "oracle.json"
PEERS = ("torch", "trl", "transformers", "tensordict")


def random_inputs() -> dict[str, torch.Tensor]:
    """Masks with holes, no empty row, groups of 3, 3 and 2; rewards on the last action."""
    g = torch.Generator().manual_seed(SEED)

    def number(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    mask = torch.rand(ROWS, WIDTH, generator=g) < 0.6
    mask[:, 3] = True
    last = (mask * torch.arange(WIDTH)).amax(1)
    reward = number(ROWS)
    placed = torch.zeros(ROWS, WIDTH, dtype=torch.float64)
    placed[torch.arange(ROWS), last] = reward
    logprobs = -number(ROWS, WIDTH).abs()
    return {
        "mask": mask,
        "group": torch.tensor([0, 0, 0, 1, 1, 1, 2, 2]),
        "reward": reward,
        "placed": placed,
        "penalty": 0.1 * number(ROWS, WIDTH),
        "values": number(ROWS, WIDTH),
        "returns": number(ROWS, WIDTH),
        "old_values": number(ROWS, WIDTH),
        "greedy": number(ROWS),
        "advantages": number(ROWS, WIDTH),
        "logprobs": logprobs,
        "old_logprobs": logprobs + 0.4 * number(ROWS, WIDTH),
        "rollout_logprobs": logprobs + 0.4 * number(ROWS, WIDTH),
        "ref_logprobs": logprobs + 0.4 * number(ROWS, WIDTH),
        "weights": number(ROWS, WIDTH).exp(),
    }


def plain(value: object) -> object:
    """Tensors as nested lists; JSON keeps float64 exactly."""
    if isinstance(value, torch.Tensor):
        value = value.detach()
        return (value.int() if value.dtype == torch.bool else value).tolist()
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    return [plain(inner) for inner in value] if isinstance(value, list | tuple) else value


def verl_advantages(x: dict[str, torch.Tensor]) -> dict[str, object]:
    from verl.trainer.config import AlgoConfig
    from verl.trainer.ppo import core_algos as verl

    mask, index = x["mask"].double(), x["group"].numpy()
    tokens = x["placed"] + x["penalty"] * mask
    discounted = AlgoConfig(gamma=0.95)
    gae = {
        f"gae gamma={gamma} lam={lam}": verl.compute_gae_advantage_return(
            tokens, x["values"], mask, gamma, lam
        )
        for gamma, lam in ((1.0, 1.0), (0.97, 0.9))
    }
    return gae | {
        "grpo": verl.compute_grpo_outcome_advantage(tokens, mask, index),
        "dr_grpo": verl.compute_grpo_outcome_advantage(
            tokens, mask, index, norm_adv_by_std_in_grpo=False
        ),
        "rloo": verl.compute_rloo_outcome_advantage(tokens, mask, index),
        "reinforce_plus_plus_baseline": (
            verl.compute_reinforce_plus_plus_baseline_outcome_advantage(tokens, mask, index)
        ),
        "reinforce_plus_plus": verl.compute_reinforce_plus_plus_outcome_advantage(
            tokens, mask, config=discounted
        ),
        "remax": verl.compute_remax_outcome_advantage(tokens, x["greedy"], mask),
    }


def with_gradient(loss: torch.Tensor, variable: torch.Tensor) -> dict[str, object]:
    return {"loss": loss, "gradient": torch.autograd.grad(loss, variable)[0]}


def verl_policy_losses(x: dict[str, torch.Tensor]) -> dict[str, object]:
    from verl.trainer.ppo import core_algos as verl
    from verl.workers.config import ActorConfig

    def config(low: float, high: float, c: float) -> ActorConfig:
        return ActorConfig(
            strategy="fsdp",
            rollout_n=1,
            ppo_micro_batch_size_per_gpu=1,
            clip_ratio_low=low,
            clip_ratio_high=high,
            clip_ratio_c=c,
        )

    out: dict[str, object] = {}
    modes = ("token-mean", "seq-mean-token-mean", "seq-mean-token-sum")
    cases = [("vanilla", mode, weighted) for mode in modes for weighted in (False, True)]
    cases += [("gspo", "seq-mean-token-mean", weighted) for weighted in (False, True)]
    cases += [("cispo", "token-mean", weighted) for weighted in (False, True)]
    for name, mode, weighted in cases:
        variable = x["logprobs"].clone().requires_grad_()
        loss, metrics = verl.get_policy_loss_fn(name)(
            old_log_prob=x["old_logprobs"],
            log_prob=variable,
            advantages=x["advantages"],
            response_mask=x["mask"].double(),
            loss_agg_mode=mode,
            config=config(0.2, 0.28, 1.5),
            rollout_is_weights=x["weights"] if weighted else None,
        )
        key = f"{name} {mode}" + (" weighted" if weighted else "")
        out[key] = with_gradient(loss, variable) | {"metrics": metrics}
    return out


def verl_other_losses(x: dict[str, torch.Tensor]) -> dict[str, object]:
    from verl.trainer.ppo import core_algos as verl

    mask = x["mask"].double()
    out: dict[str, object] = {}
    for mode in ("token-mean", "seq-mean-token-mean", "seq-mean-token-sum"):
        variable = x["values"].clone().requires_grad_()
        loss, clipped = verl.compute_value_loss(
            variable, x["returns"], x["old_values"], mask, 0.5, loss_agg_mode=mode
        )
        out[f"value {mode}"] = with_gradient(loss, variable) | {"clipped": clipped}
    for mode in ("token-mean", "seq-mean-token-mean", "seq-mean-token-sum"):
        out[f"aggregate {mode}"] = verl.agg_loss(x["advantages"], mask, mode)
    out["aggregate seq-mean-token-sum-norm"] = verl.agg_loss(
        x["advantages"], mask, "seq-mean-token-sum-norm", loss_scale_factor=64
    )
    for kind in ("kl", "k1", "abs", "mse", "k2", "low_var_kl", "k3", "k1+", "k3+", "abs+"):
        variable = x["logprobs"].clone().requires_grad_()
        value = verl.kl_penalty(variable, x["ref_logprobs"], kind)
        out[f"kl {kind}"] = with_gradient(value.sum(), variable) | {"value": value}
    return out


def verl_off_policy(x: dict[str, torch.Tensor]) -> dict[str, object]:
    from verl.trainer.ppo import rollout_corr_helper as verl

    log_ratio = x["old_logprobs"] - x["rollout_logprobs"]
    mask = x["mask"].double()
    weights = {
        f"{level} {bounds}": verl.compute_rollout_correction_weights(
            log_ratio, mask, level, bounds
        )[0]
        for level in ("token", "sequence")
        for bounds in ("1.3", "0.8_1.3")
    }
    keep = {
        option: verl.compute_rollout_rejection_mask(log_ratio, mask, option, "0.9_1.15")[0]
        for option in ("token_k1", "seq_sum_k1", "seq_mean_k1")
    }
    return {"weights": weights, "keep": keep}


def verl_controller() -> dict[str, object]:
    from verl.trainer.ppo.core_algos import AdaptiveKLController

    controller = AdaptiveKLController(0.2, target_kl=0.1, horizon=400)
    kls, coefs = [0.05, 0.2, 0.1, 0.0, 3.0, 0.11], []
    for kl in kls:
        controller.update(kl, n_steps=64)
        coefs.append(float(controller.value))
    return {"kls": kls, "coefs": coefs}


def verl_differences() -> dict[str, object]:
    """Where we differ on purpose: their numbers, so that a test can show the difference."""
    from verl.trainer.config import AlgoConfig
    from verl.trainer.ppo import core_algos as verl

    one_token = torch.tensor([[0.0, 5.0]], dtype=torch.float64)
    mask, index = torch.tensor([[0.0, 1.0]], dtype=torch.float64), np.array([0])
    ends_on_tool = torch.tensor([[1.0, 1.0, 0.0]], dtype=torch.float64)
    reward_on_tool = torch.tensor([[0.0, 0.0, 5.0]], dtype=torch.float64)
    empty = torch.zeros(1, 2, dtype=torch.float64)
    with_padding = torch.tensor([[0.0, 1.0], [0.0, 2.0], [0.0, 0.0]], dtype=torch.float64)
    padding_mask = torch.tensor([[0.0, 1.0], [0.0, 1.0], [0.0, 0.0]], dtype=torch.float64)
    try:
        verl.compute_reinforce_plus_plus_outcome_advantage(one_token, mask, config=AlgoConfig())
        single = "no error"
    except ValueError as error:
        single = type(error).__name__
    zero = torch.zeros(1, dtype=torch.float64)
    return {
        "group of one": {
            "grpo": verl.compute_grpo_outcome_advantage(one_token, mask, index)[0],
            "rloo": verl.compute_rloo_outcome_advantage(one_token, mask, index)[0],
        },
        "whitening of one token": single,
        "reward on a trailing tool token": verl.compute_reinforce_plus_plus_outcome_advantage(
            reward_on_tool, ends_on_tool, config=AlgoConfig()
        )[1],
        "gae outside of the mask": verl.compute_gae_advantage_return(
            reward_on_tool.flip(1), torch.zeros_like(reward_on_tool), ends_on_tool, 1.0, 1.0
        )[0],
        "token-mean of an empty mask": str(verl.agg_loss(empty, empty, "token-mean").item()),
        "k3 far away": verl.kl_penalty(zero - 5, zero, "k3"),
        "empty row in a group": verl.compute_grpo_outcome_advantage(
            with_padding, padding_mask, np.array([0, 0, 0]), norm_adv_by_std_in_grpo=False
        )[0],
    }


def trl_losses(x: dict[str, torch.Tensor]) -> dict[str, object]:
    """``GRPOTrainer._compute_loss`` on given numbers, without a model."""
    from trl import GRPOTrainer

    out = {}
    cases = [
        ("grpo", "token", 0.0),
        ("dapo", "token", 0.0),
        ("dr_grpo", "token", 0.0),
        ("cispo", "token", 0.0),
        ("grpo", "sequence", 0.0),
        ("grpo", "token", 0.1),
    ]
    for loss_type, level, beta in cases:
        variable = x["logprobs"].clone().requires_grad_()
        trainer = _trl_stub(variable, loss_type, level, beta)
        loss = GRPOTrainer._compute_loss(trainer, None, _trl_batch(x))
        out[f"{loss_type} {level} beta={beta}"] = with_gradient(loss, variable)
    return out


def _trl_batch(x: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    prompt = torch.zeros(ROWS, 1, dtype=torch.int64)
    return {
        "prompt_ids": prompt,
        "prompt_mask": prompt + 1,
        "completion_ids": torch.zeros(ROWS, WIDTH, dtype=torch.int64),
        "completion_mask": x["mask"].long(),
        "advantages": x["advantages"][:, 0],
        "old_per_token_logps": x["old_logprobs"],
        "ref_per_token_logps": x["ref_logprobs"],
        "num_items_in_batch": x["mask"].sum(),
    }


def _trl_stub(
    logprobs: torch.Tensor, loss_type: str, level: str, beta: float
) -> types.SimpleNamespace:
    return types.SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *a, **k: (
            logprobs,
            torch.zeros_like(logprobs),
            None,
        ),
        accelerator=types.SimpleNamespace(
            gather=lambda v: v, reduce=lambda v, reduction: v, num_processes=1
        ),
        args=types.SimpleNamespace(
            delta=None, use_bias_correction_kl=False, steps_per_generation=1
        ),
        aux_loss_enabled=False,
        beta=beta,
        current_gradient_accumulation_steps=1,
        epsilon_low=0.2,
        epsilon_high=1.28 if loss_type == "cispo" else 0.28,
        importance_sampling_level=level,
        loss_type=loss_type,
        max_completion_length=64,
        model=types.SimpleNamespace(training=True),
        off_policy_mask_threshold=None,
        top_entropy_quantile=1.0,
        use_vllm=False,
        _entropy_bonus_enabled=False,
        _metrics={"train": collections.defaultdict(list)},
    )


TRL_REWARDS = [1.0, 0.0, 0.5, 2.0, -1.0, 0.25, 0.25, 0.0]


def trl_advantages() -> dict[str, object]:
    """Advantages of one real training step of a tiny random model, with given rewards."""
    from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

    out: dict[str, object] = {"rewards": TRL_REWARDS}
    with tempfile.TemporaryDirectory() as folder:
        for scale in ("group", "none"):
            config = GRPOConfig(folder, beta=0.0, scale_rewards=scale, **_trl_options())
            out[f"grpo scale={scale}"] = _one_step(GRPOTrainer, config)
        config = RLOOConfig(folder, beta=0.0, normalize_advantages=False, **_trl_options())
        out["rloo"] = _one_step(RLOOTrainer, config)
    return out


def _trl_options() -> dict[str, object]:
    return {
        "per_device_train_batch_size": len(TRL_REWARDS),
        "num_generations": 4,
        "max_completion_length": 4,
        "max_steps": 1,
        "bf16": False,
        "use_cpu": True,
        "report_to": [],
        "save_strategy": "no",
        "disable_tqdm": True,
    }


def _one_step(trainer_class: type, config: object) -> list[float]:
    from datasets import Dataset
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    seen: list[list[float]] = []

    class Recording(trainer_class):
        def _generate_and_score_completions(self, inputs: object) -> object:
            output = super()._generate_and_score_completions(inputs)
            seen.append(output["advantages"].tolist())
            return output

    words = ["<pad>", "<eos>", *"abcdefgh"]
    tokenizer = Tokenizer(WordLevel({w: i for i, w in enumerate(words)}, unk_token="a"))
    tokenizer.pre_tokenizer = Whitespace()
    torch.manual_seed(SEED)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(words),
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            eos_token_id=1,
            pad_token_id=0,
        )
    )
    trainer = Recording(
        model=model,
        reward_funcs=lambda completions, **_: TRL_REWARDS,
        args=config,
        train_dataset=Dataset.from_dict({"prompt": ["a b", "c d"]}),
        processing_class=PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>"
        ),
    )
    trainer.train()
    return seen[0]


def main() -> None:
    from importlib.metadata import version

    parser = argparse.ArgumentParser()
    parser.add_argument("--verl-commit", required=True)
    arguments = parser.parse_args()
    torch.set_default_dtype(torch.float64)
    x = random_inputs()
    numbers: dict[str, object] = {
        "seed": SEED,
        "versions": {"verl": arguments.verl_commit} | {peer: version(peer) for peer in PEERS},
        "inputs": x,
        "verl": {
            "advantages": verl_advantages(x),
            "policy": verl_policy_losses(x),
            "other": verl_other_losses(x),
            "off_policy": verl_off_policy(x),
            "controller": verl_controller(),
            "differences": verl_differences(),
        },
        "trl": {"losses": trl_losses(x)},
    }
    torch.set_default_dtype(torch.float32)
    numbers["trl"]["advantages"] = trl_advantages()
    FIXTURE.parent.mkdir(exist_ok=True)
    FIXTURE.write_text(json.dumps(plain(numbers), separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
