"""What every logged metric means: ``agent-r1 config metrics``.

A name may hold ``*``, which stands for one part or more. A test holds the table against what
the code logs, so that no name is without a sentence.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from difflib import get_close_matches

from agent_r1.errors import ConfigError
from agent_r1.monitor.console import HEADLINES

METRICS: Mapping[str, str] = {
    "rollout/success": "share of scored trajectories that solved their task: the reward's part "
    "accuracy if it has one, else a reward above 0",
    "rollout/trajectories": "trajectories that were sampled for the step",
    "rollout/failed": "share of trajectories that failed (tool_error, engine_error)",
    "rollout/unscored": "share of the others that the reward could not score",
    "rollout/tool_call_share": "share of trajectories that call a tool",
    "rollout/uniform_groups": "share of groups whose members score the same: no gradient",
    "rollout/seconds/*": "seconds of a trajectory from its first token to its reward",
    "critic/rewards/*": "rewards of scored trajectories",
    "critic/advantages/*": "advantages of the tokens that the model wrote",
    "critic/returns/*": "returns of the tokens that the model wrote",
    "critic/values/*": "values that the critic gave the tokens before its update",
    "critic/vf_loss": "loss of the critic",
    "critic/vf_clipfrac": "share of tokens whose value was clipped",
    "critic/vf_mse": "mean squared error of the values",
    "critic/vpred_mean": "mean value during the update",
    "critic/vf_explained_var": "1 - Var(return - value) / Var(return); 1 is a perfect critic",
    "critic/grad_norm": "norm of the critic's gradient before clipping",
    "critic/lr": "learning rate of the critic",
    "critic/updates": "optimizer steps of the critic in the step",
    "critic/skipped_updates": "optimizer steps of the critic skipped for a gradient not finite",
    "reward/*/mean": "mean of one part of the reward",
    "outcome/*": "share of trajectories that ended this way; all of them add up to 1",
    "response_length/mean": "tokens that the model wrote in a trajectory; tool text is not counted",
    "response_length/max": "the longest of them",
    "response_length/min": "the shortest of them",
    "response_length/clip_ratio": "share of trajectories that used up data.max_response_length",
    "prompt_length/*": "tokens of the first prompt",
    "observation_length/mean": "tokens of a trajectory that tools and environments wrote",
    "num_turns/*": "turns of the model in a trajectory",
    "tool/calls/mean": "tool calls of a trajectory",
    "tool/success": "share of tool calls that succeed; absent without any",
    "tool/seconds/*": "seconds of a tool call",
    "env/*": "the same of the trajectories of one environment alone",
    "actor/entropy": "entropy of the policy in nats per token",
    "actor/pg_loss": "policy loss",
    "actor/pg_clipfrac": "share of tokens whose ratio the loss clips",
    "actor/pg_clipfrac_low": "the part clipped from below",
    "actor/pg_clipfrac_high": "the part clipped from above",
    "actor/pg_clipfrac_dual": "share of tokens bounded by the dual clip",
    "actor/ppo_kl": "KL of the policy before the update to the one after, nats per token (k1)",
    "actor/ppo_kl_k3": "the same by the estimator k3, which is never negative",
    "actor/ratio_*": "new probability over old, of the tokens that the model wrote",
    "actor/kl_loss": "KL to the reference policy, as a term of the loss",
    "actor/kl_coef": "its weight",
    "actor/reward_kl_penalty": "KL to the reference policy, taken off the reward",
    "actor/reward_kl_penalty_coeff": "its weight",
    "actor/grad_norm": "norm of the policy's gradient before clipping",
    "actor/lr": "learning rate of the policy",
    "actor/updates": "optimizer steps of the policy in the step",
    "actor/skipped_updates": "optimizer steps of the policy skipped for a gradient not finite",
    "training/logprob_diff_mean": "mean difference between the engine's and the trainer's "
    "log-probabilities of the same tokens, nats",
    "training/logprob_diff_max": "the largest of them",
    "training/rollout_kl": "KL of the engine's policy to the trainer's, nats per token (k1)",
    "training/rollout_kl_k3": "the same by the estimator k3",
    "training/rollout_is_mean": "mean weight that corrects for the engine's policy",
    "training/rollout_is_dropped": "share of tokens that this correction leaves out",
    "distillation/reverse_kl": "KL of the policy to the teacher, nats per token",
    "curriculum/tasks": "tasks whose difficulty is known",
    "curriculum/solved": "share of them whose success rate is at least data.curriculum.solved",
    "curriculum/hopeless": "share of them whose success rate is at most data.curriculum.hopeless",
    "curriculum/skipped": "share of asked tasks that the curriculum passed over",
    "async/under_way": "trajectories being sampled when the step was taken",
    "async/groups": "groups in the queue",
    "async/stale_groups": "groups sampled again because they had become too old",
    "async/flat_groups": "groups given up because all of their members score the same",
    "async/cut_groups": "groups that began without their slowest members",
    "async/mixed_trajectories": "share of trajectories written by more than one policy",
    "async/staleness/*": "updates between the policy of a token and the one that it improves",
    "async/version_share/lag_*": "share of tokens that are so many updates old",
    "weights/version": "version of the policy that the engine serves",
    "weights/bytes": "bytes that its transfer took",
    "weights/seconds": "seconds that its transfer took",
    "weights/failures": "transfers in a row that failed",
    "timing_s/gen": "seconds of waiting for trajectories",
    "timing_s/old_log_prob": "seconds of the trainer's log-probabilities",
    "timing_s/ref": "seconds of the reference policy",
    "timing_s/teacher": "seconds of the teacher",
    "timing_s/values": "seconds of the critic's values",
    "timing_s/adv": "seconds of rewards into advantages",
    "timing_s/update_critic": "seconds of the critic's update",
    "timing_s/update_actor": "seconds of the policy's update",
    "timing_s/update_weights": "seconds of handing the weights to the engine",
    "timing_s/step": "seconds of the whole step",
    "perf/throughput": "tokens, tool tokens included, per second of the whole step",
    "perf/total_num_tokens": "tokens of the step's trajectories, tool tokens included",
    "perf/time_per_step": "seconds of the whole step",
    "perf/token_imbalance": "most tokens of a rank over the mean of all ranks",
    "val-core/*": "validation: source, part of the reward, mean over so many samples of a task",
    "val-aux/failed": "share of validation trajectories that failed or could not be scored",
    "val-aux/tool_call_share": "share of validation trajectories that call a tool",
    "val-aux/num_turns/mean": "turns of a validation trajectory",
    "val-aux/response_length/mean": "tokens that the model wrote in a validation trajectory",
    "train/loss": "cold start: loss per target token",
    "train/grad_norm": "cold start: norm of the gradient before clipping",
    "train/lr": "cold start: learning rate",
    "train/skipped": "cold start: optimizer steps skipped for a gradient not finite",
    "train/tokens": "cold start: tokens of the step",
    "train/target_tokens": "cold start: tokens of the step that are learned",
    "val/loss": "cold start: loss per target token on held-out traces",
}
"""Name or pattern, and what it means. An exact name comes before a pattern."""


def meaning(name: str) -> str | None:
    """The sentence of a logged name; None if there is none."""
    if name in METRICS:
        return METRICS[name]
    for pattern, sentence in METRICS.items():
        parts = map(re.escape, pattern.split("*"))
        if "*" in pattern and re.fullmatch(".+".join(parts), name, re.DOTALL):
            return sentence
    return None


def explain(asked: str | None = None) -> Iterator[str]:
    """Lines about one metric, those of one prefix, or all of them.

    A metric may be asked for by what the console calls it.

    Raises:
        ConfigError: nothing has that name.
    """
    if asked and (found := meaning(asked)):
        yield f"{asked}: {found}"
        return
    called = [key for row in HEADLINES if row.label == asked for key in row.keys]
    yield from (f"{key} ({asked} on the console): {meaning(key)}" for key in called)
    chosen = [n for n in METRICS if not asked or n.startswith(asked.rstrip("/*") + "/")]
    if not (chosen or called):
        near = get_close_matches(asked or "", METRICS, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ConfigError(f"no metric is called {asked}{hint} (agent-r1 config metrics)")
    width = max(map(len, chosen), default=0)
    yield from (f"{name:<{width}}  {METRICS[name]}" for name in chosen)
