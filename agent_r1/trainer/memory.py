"""What a run will need of a device's memory, by part, before a weight is read.

Three phases of a step compete for memory: rollouts (weights, keys and values), forward
passes of the trainer (a visiting reference), and the update (gradients, activations of one
micro-batch). Weights and optimizer states are there throughout. The plan takes the largest
phase. Its numbers follow from the model's configuration and from what the code of this
package keeps: see :func:`layer_elements`. Of several processes (FSDP2) it is the plan of the
first, which also samples. All sizes are bytes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from agent_r1.config.checks import needs_reference
from agent_r1.config.load import as_overrides, load_section
from agent_r1.config.policy import OptimConfig
from agent_r1.config.schema import Config
from agent_r1.errors import ConfigError
from agent_r1.models.head import CHUNK_BYTES
from agent_r1.models.load import torch_dtype
from agent_r1.rollout.engines.embedded_memory import bytes_per_token, device_memory
from agent_r1.trainer.credit import CreditAssigner
from agent_r1.trainer.memory_spread import ALONE, Processes, Spread, processes_of, spread_of

PREFILL_CHUNK = 2048
"""Prompt tokens that the embedded engine computes at a time."""
CONTEXT_BYTES = {"cuda": 500 << 20, "cpu": 0}
"""What CUDA itself, its libraries' workspaces and fragments of the allocator take."""


@dataclass(frozen=True, slots=True)
class Network:
    """The sizes of a decoder that memory depends on."""

    parameters: int
    trained: int
    embedding: int
    """Parameters of the embedding table."""
    tied: bool
    """Whether the output layer is the embedding table."""
    hidden: int
    layers: int
    queries: int
    """Heads times their dimension."""
    keys: int
    feed_forward: int
    vocabulary: int
    head_norms: bool
    cached: int
    """Numbers that the engine keeps per token."""
    adapters: int
    """Numbers between A and B of all adapters of a layer, per token."""


@dataclass(frozen=True, slots=True)
class Part:
    """One thing that takes memory: on the device, or in the machine's own memory."""

    name: str
    device: int = 0
    host: int = 0


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """What stays, what each phase adds, and what there is."""

    resident: tuple[Part, ...]
    phases: Mapping[str, tuple[Part, ...]]
    device: str
    device_bytes: int
    host_bytes: int
    processes: Processes = ALONE

    def device_need(self, phase: str) -> int:
        return sum(part.device for part in (*self.resident, *self.phases[phase]))

    @property
    def needed(self) -> int:
        """On the device, in the phase that takes most."""
        return max(self.device_need(phase) for phase in self.phases)

    @property
    def host_needed(self) -> int:
        most = max(sum(part.host for part in parts) for parts in self.phases.values())
        return sum(part.host for part in self.resident) + most

    @property
    def fits(self) -> bool:
        """Where device and host are one memory, both needs are taken from it."""
        if self.device == "cpu":
            return self.needed + self.host_needed <= self.device_bytes
        return self.needed <= self.device_bytes and self.host_needed <= self.host_bytes

    def table(self) -> str:
        """For people: every part, the sum of every phase, and the verdict."""
        many = self.processes.total
        title = "memory plan (GiB)" + (f", first of {many} processes" if many > 1 else "")
        lines = [f"{title:50s}device    host"]
        lines += [_line(part.name, part.device, part.host) for part in self.resident if _any(part)]
        for name, parts in self.phases.items():
            lines += [_line(f"  {name}: {p.name}", p.device, p.host) for p in parts if _any(p)]
            lines.append(_line(f"{name}, all together", self.device_need(name), 0))
        verdict = "fits" if self.fits else "DOES NOT FIT"
        lines.append(_line("needed at most", self.needed, self.host_needed))
        lines.append(_line("there is", self.device_bytes, self.host_bytes) + f"   {verdict}")
        return "\n".join(lines)


def _any(part: Part) -> bool:
    return part.device + part.host > 0


def _line(name: str, device: int, host: int) -> str:
    return f"{name:48s}{device / 2**30:8.2f}{host / 2**30:8.2f}"


def plan_memory(
    config: Config,
    *,
    device: str,
    device_bytes: int | None = None,
    host_bytes: int | None = None,
    policy: Network | None = None,
    processes: Processes | None = None,
) -> MemoryPlan:
    """The plan of a training run on ``device`` (``cuda`` or ``cpu``).

    Sizes that are not given are those of this machine; on a CPU its processes share its memory
    equally. ``processes`` are by default those of :func:`processes_of`. The model's
    ``config.json`` is read, its weights are not, unless ``policy`` says its sizes.
    """
    roles = config.actor_rollout_ref
    element = torch_dtype(roles.model.dtype_on(device)).itemsize
    many = processes_of(config) if processes is None else processes
    if policy is None:
        model = roles.model
        policy = network(config, model.path, model.lora_rank, model.target_modules)
    machine = device_memory(torch.device("cpu"))
    if device_bytes is None:
        device_bytes = device_memory(torch.device(device)) // (many.local if device == "cpu" else 1)
    spread = spread_of(many, roles.actor.fsdp_config, roles.actor.optim.offload, device)
    resident = [Part("CUDA and its libraries", CONTEXT_BYTES[device])]
    resident += _trained("policy", policy, roles.actor.optim, element, spread)
    if spread and config.actor_rollout_ref.rollout.name != "vllm":
        resident.append(Part("the engine's copy of the policy", policy.parameters * element))
    forward = [Part("activations and logits", _forward_bytes(config, policy, element, device))]
    forward += _gathered(policy, spread, element)
    if needs_reference(config) and not (roles.model.lora_rank and roles.ref.path is None):
        visits = roles.ref.offload and device != "cpu"
        home, visiting = _reference(
            policy, element, visits, spread_of(many, roles.ref.fsdp_config, visits, device)
        )
        resident.append(home)
        forward += visiting
    if config.algorithm.distillation.teacher:
        teacher = network(config, config.algorithm.distillation.teacher)
        resident.append(Part("teacher, weights", teacher.parameters * element))
    phases = {
        "rollout": _rollout_parts(config, policy, element, device_bytes),
        "log-probabilities": tuple(forward),
        "policy update": _update_parts(config, policy, element, device, spread),
    }
    if CreditAssigner(config.algorithm).needs_values:
        critic, optim = _critic(config), config.critic.optim
        spread = spread_of(many, config.critic.model.fsdp_config, optim.offload, device)
        resident += _trained("critic", critic, optim, element, spread)
        phases["critic update"] = _update_parts(
            config, critic, element, device, spread, critic=True
        )
    if roles.rollout.free_cache_engine is False:
        resident += phases["rollout"]  # recorded decode steps keep what they work with
        phases["rollout"] = ()
    host = host_bytes or machine
    return MemoryPlan(tuple(resident), phases, device, device_bytes, host, many)


def _critic(config: Config) -> Network:
    """The sizes of the critic: a decoder with a head of one output."""
    chosen, policy = config.critic.model, config.actor_rollout_ref.model
    found = network(config, chosen.path or policy.path, chosen.lora_rank, chosen.target_modules)
    return replace(found, vocabulary=0)


def frees_cache(config: Config, device: str) -> bool:
    """Whether the embedded engine gives its keys and values back between rollouts: as
    configured, else where there is no room for them beside every other phase of a step.
    """
    chosen = config.actor_rollout_ref.rollout.free_cache_engine
    if chosen is not None or device != "cuda":
        return chosen is not False
    kept = as_overrides({"actor_rollout_ref.rollout.free_cache_engine": False})
    return not plan_memory(load_section(Config, config, kept, environ={}), device=device).fits


def network(
    config: Config, path: str, rank: int = 0, targets: tuple[str, ...] = ("all-linear",)
) -> Network:
    """The sizes of the model of a folder, of which only ``config.json`` is read."""
    from transformers import AutoConfig, AutoModelForCausalLM

    found = AutoConfig.from_pretrained(
        os.fspath(path), trust_remote_code=config.actor_rollout_ref.model.trust_remote_code
    )
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(found)
    return network_of(model, rank, targets)


def network_of(model: Any, rank: int = 0, targets: tuple[str, ...] = ("all-linear",)) -> Network:
    """The sizes of a model without adapters, with those of rank ``rank`` taken into account."""
    text = model.config.get_text_config()
    table, head = model.get_input_embeddings(), model.get_output_embeddings()
    dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    parameters = sum(parameter.numel() for parameter in model.parameters())
    linear = [
        module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
        and module is not head
        and ("all-linear" in targets or name.rpartition(".")[2] in targets)
    ]
    adapters = sum(rank * (layer.in_features + layer.out_features) for layer in linear)
    return Network(
        parameters=parameters + adapters,
        trained=adapters or parameters,
        embedding=table.weight.numel(),
        tied=head is None or head.weight is table.weight,
        hidden=text.hidden_size,
        layers=text.num_hidden_layers,
        queries=text.num_attention_heads * dim,
        keys=(getattr(text, "num_key_value_heads", None) or text.num_attention_heads) * dim,
        feed_forward=getattr(text, "intermediate_size", None) or 4 * text.hidden_size,
        vocabulary=table.weight.shape[0],
        head_norms=any(name.endswith("q_norm") for name, _ in model.named_modules()),
        cached=bytes_per_token(model.config, 1),
        adapters=rank * len(linear) // max(1, text.num_hidden_layers),
    )


# --- parts -------------------------------------------------------------------------------


def _trained(
    who: str, net: Network, optim: OptimConfig, element: int, spread: Spread | None
) -> list[Part]:
    """Weights, masters and moments of a network that is trained."""
    moments = _moment_bytes(net, optim)
    if spread:
        exact, moments = 4 * net.parameters // spread.shards, moments // spread.shards
        if spread.offload:
            sums = 4 * net.trained // spread.shards
            everything = spread.local * (exact + moments + sums)
            return [Part(f"{who}, shards, moments, gradients", host=everything)]
        return [
            Part(f"{who}, float32 shards", exact),
            Part(f"{who}, moments of the shards", moments),
        ]
    narrow = element < 4
    masters = 4 * net.trained if narrow or optim.offload else 0
    parts = [Part(f"{who}, weights", net.parameters * element)]
    if optim.offload:
        return [
            *parts,
            Part(f"{who}, masters, moments, gradients", host=masters + moments + masters),
        ]
    return [*parts, Part(f"{who}, float32 masters", masters), Part(f"{who}, moments", moments)]


def _reference(
    net: Network, element: int, visits: bool, spread: Spread | None
) -> tuple[Part, list[Part]]:
    """Where the reference is, and what it takes besides while it is asked."""
    weights = net.parameters * element
    if spread:
        shards = 4 * net.parameters // spread.shards
        if spread.offload:
            return Part("reference, shards", host=spread.local * shards), []
        return Part("reference, float32 shards", shards), []
    if visits:
        return Part("reference, weights", host=weights), [
            Part("reference, while it is asked", weights)
        ]
    return Part("reference, weights", weights), []


def _gathered(net: Network, spread: Spread | None, element: int) -> list[Part]:
    """What a process holds of the others' shards while it computes.

    The embedding table throughout; the layer that computes and the next one, or all of them; an
    output layer of its own in float32.
    """
    if spread is None:
        return []
    heads = 1 if net.tied else 2
    body = net.parameters - heads * net.embedding
    layers = body if spread.keeps else 2 * body // net.layers
    head = 0 if net.tied or not net.vocabulary else 4 * net.embedding
    return [Part("gathered weights", (layers + net.embedding) * element + head)]


def _moment_bytes(net: Network, optim: OptimConfig) -> int:
    if optim.name == "adamw_8bit":
        return 2 * net.trained + 8 * net.trained // 256
    if optim.name == "muon":
        return 4 * net.trained + 4 * min(net.embedding, net.trained)
    return 8 * net.trained


def _rollout_parts(
    config: Config, net: Network, element: int, device_bytes: int
) -> tuple[Part, ...]:
    """Keys and values of all slots at full length, one chunk of prompts, logits of all rows."""
    rollout = config.actor_rollout_ref.rollout
    share = int(rollout.gpu_memory_utilization * device_bytes)
    slot = net.cached * element * config.context_window
    slots = min(rollout.max_num_seqs, max(1, share // slot))
    chunk = PREFILL_CHUNK * element * (4 * net.hidden + 3 * net.feed_forward + 3 * net.queries)
    logits = 3 * 4 * slots * net.vocabulary
    return (Part(f"keys and values, {slots} sequences", slots * slot), Part("step", chunk + logits))


def layer_elements(net: Network) -> int:
    """Numbers per token that one layer keeps for its backward pass.

    Two residual sums and their two norms; queries, keys, values and the output of
    attention, with what the norms of heads take in; gate and up projection. The product
    of the last two and what happens inside of norms is computed again.
    """
    norms = net.queries + net.keys if net.head_norms else 0
    attention = 2 * net.queries + 2 * net.keys + norms
    return 4 * net.hidden + attention + 2 * net.feed_forward + net.adapters


def _update_parts(
    config: Config,
    net: Network,
    element: int,
    device: str,
    spread: Spread | None,
    *,
    critic: bool = False,
) -> tuple[Part, ...]:
    """Gradients, and the activations of one micro-batch of as many tokens as are allowed."""
    actor = config.actor_rollout_ref.actor
    tokens = actor.ppo_max_token_len_per_gpu
    if critic:
        tokens = config.critic.ppo_max_token_len_per_gpu or tokens
    kept = element if actor.autocast == "off" else 2
    layer = layer_elements(net)
    working = 2 * net.hidden + 5 * net.feed_forward
    gradients = 2 * net.hidden + 3 * net.feed_forward
    if config.actor_rollout_ref.model.enable_gradient_checkpointing:
        # Inside the one layer that is computed again, everything is kept.
        layer += 2 * net.hidden + 2 * net.feed_forward
        layer += net.queries + net.keys if net.head_norms else 0
        stored, working = net.layers * net.hidden, gradients + layer
    else:
        stored = net.layers * layer
    head = 0 if critic else _head_bytes(net, tokens, kept, device)
    whole = net.trained == net.parameters
    largest = net.embedding * (4 + element) if whole and not critic else 0
    sums = 4 * net.trained
    if spread and not spread.sums_whole:
        sums = 0 if spread.offload else sums // spread.shards
    return (
        *_gathered(net, spread, element),
        Part("gradients", sums),
        Part(f"activations of {tokens:,} tokens", stored * tokens * kept),
        Part("largest operation", max(working * tokens * kept, head + largest)),
    )


def _head_bytes(net: Network, tokens: int, element: int, device: str) -> int:
    """Output layer: hidden states and their gradient, a chunk of logits, and on a GPU its
    exponentials and its copy in the type of the products (on a CPU these are done in blocks).
    """
    exact = 4 if device == "cuda" else element
    chunk = min(CHUNK_BYTES[device], exact * tokens * net.vocabulary)
    copies = 2 + element / 4 if device == "cuda" else 1
    return int(3 * tokens * net.hidden * element + copies * chunk)


def _forward_bytes(config: Config, net: Network, element: int, device: str) -> int:
    tokens = config.actor_rollout_ref.actor.ppo_max_token_len_per_gpu
    layer = (4 * net.hidden + 3 * net.feed_forward + 3 * net.queries) * tokens * element
    return max(layer, _head_bytes(net, tokens, element, device))


def check_memory(config: Config, device: str) -> str | None:
    """What to tell before weights are loaded: the table on a GPU, on a CPU only bad news.

    Raises :class:`ConfigError` with the table and settings that would fit when this one does
    not and ``trainer.memory_check`` is ``error``; on a CPU, whose memory can be swapped, it is
    told and nothing more.
    """
    mode = config.trainer.memory_check
    if mode == "off":
        return None
    plan = plan_memory(config, device=device)
    if plan.fits:
        return plan.table() if device == "cuda" else None
    ways = "\n".join(f"  {way}" for way in ways_to_fit(config, plan))
    text = f"{plan.table()}\nIt would fit with:\n{ways or '  none of the usual settings'}"
    if mode == "error" and device == "cuda":
        raise ConfigError(
            f"{text}\nTo try all the same, set trainer.memory_check=warn (the plan counts every "
            "micro-batch as full)."
        )
    return text


# --- what would fit ----------------------------------------------------------------------

_CHECKPOINTING = {"actor_rollout_ref.model.enable_gradient_checkpointing": True}
_OFFLOAD = {
    "actor_rollout_ref.actor.optim.offload": True,
    "critic.optim.offload": True,
    "actor_rollout_ref.ref.offload": True,
}
_EIGHT_BIT = {
    "actor_rollout_ref.actor.optim.name": "adamw_8bit",
    "critic.optim.name": "adamw_8bit",
}
_LORA = {"actor_rollout_ref.model.lora_rank": 32, "critic.model.lora_rank": 32}
_SHORTER = {"actor_rollout_ref.actor.ppo_max_token_len_per_gpu": 8192}
_OFFLOAD_SHARDS = {
    "actor_rollout_ref.actor.fsdp_config.param_offload": True,
    "critic.model.fsdp_config.param_offload": True,
    "actor_rollout_ref.ref.fsdp_config.param_offload": True,
}
_WAYS_OF_SHARDS: tuple[dict[str, Any], ...] = (
    _CHECKPOINTING,
    _CHECKPOINTING | _SHORTER,
    _OFFLOAD_SHARDS,
    _OFFLOAD_SHARDS | _CHECKPOINTING,
    _OFFLOAD_SHARDS | _CHECKPOINTING | _SHORTER,
    _LORA,
    _LORA | _CHECKPOINTING | _SHORTER,
)
_WAYS: tuple[dict[str, Any], ...] = (
    _CHECKPOINTING,
    _CHECKPOINTING | _SHORTER,
    _EIGHT_BIT | _CHECKPOINTING,
    _OFFLOAD,
    _OFFLOAD | _CHECKPOINTING,
    _OFFLOAD | _CHECKPOINTING | _SHORTER,
    _LORA,
    _LORA | _CHECKPOINTING,
    _LORA | _CHECKPOINTING | _SHORTER,
)


def ways_to_fit(config: Config, plan: MemoryPlan, limit: int = 3) -> Iterator[str]:
    """Overrides with which the run would fit, those that change the least first."""
    found: list[dict[str, Any]] = []
    critic, reference = CreditAssigner(config.algorithm).needs_values, needs_reference(config)
    for every in _WAYS if plan.processes.total == 1 else _WAYS_OF_SHARDS:
        way = {
            key: value
            for key, value in every.items()
            if (critic or not key.startswith("critic.")) and (reference or ".ref." not in key)
        }
        changed = load_section(Config, config, as_overrides(way), environ={})
        if changed == config or any(known.items() <= way.items() for known in found):
            continue
        other = plan_memory(
            changed,
            device=plan.device,
            device_bytes=plan.device_bytes,
            host_bytes=plan.host_bytes,
            processes=plan.processes,
        )
        if other.fits:
            yield f"{other.needed / 2**30:.1f} GiB with {' '.join(as_overrides(way))}"
            found.append(way)
        if len(found) == limit:
            return
