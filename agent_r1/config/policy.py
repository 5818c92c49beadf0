"""Settings of the networks: how they are loaded, sampled from and updated."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
)

from agent_r1.config.section import Names, OffWord, PositiveShare, Section, Share

AggregationMode = Literal[
    "token-mean", "seq-mean-token-mean", "seq-mean-token-sum", "seq-mean-token-sum-norm"
]
"""How a per-token loss becomes one number; divisors are always those of the whole batch."""

_KL_NAMES = {
    "kl": "k1",
    "mse": "k2",
    "low_var_kl": "k3",
    "kl+": "k1+",
    "low_var_kl+": "k3+",
}

KLKind = Annotated[
    Literal["k1", "k2", "k3", "abs", "k1+", "k3+", "abs+"],
    BeforeValidator(lambda v: _KL_NAMES.get(v, v) if isinstance(v, str) else v),
]
"""A KL estimator. ``kl``, ``mse`` and ``low_var_kl`` are accepted for k1, k2 and k3; a ``+``
keeps the value of the estimator and takes the gradient of k2 (straight-through)."""

_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}

DType = Annotated[
    Literal["auto", "float32", "bfloat16", "float16"],
    BeforeValidator(lambda v: _DTYPES.get(v, v) if isinstance(v, str) else v),
]


class OptimConfig(Section):
    """An optimizer and its learning-rate schedule. A step is one optimizer step."""

    name: Annotated[
        Literal["adamw", "adamw_8bit", "muon"],
        BeforeValidator(lambda v: v.lower() if isinstance(v, str) else v),
    ] = "adamw"
    """``muon`` orthogonalises the updates of weight matrices and uses AdamW for the rest;
    ``adamw_8bit`` keeps both moments in 8 bits (package ``torchao``): 2 bytes a weight, not 8."""
    lr: PositiveFloat = 1e-6
    """Peak learning rate."""
    weight_decay: NonNegativeFloat = 0.01
    """Decoupled weight decay; not applied to biases and norms."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of the first and of the second moment."""
    eps: PositiveFloat = 1e-8
    """Added to the root of the second moment."""
    lr_scheduler_type: Literal["constant", "linear", "cosine"] = "constant"
    """Shape after the warm-up."""
    lr_warmup_steps: Annotated[int, Field(ge=-1)] = -1
    """Steps of linear warm-up from 0. -1: the ratio below decides."""
    lr_warmup_steps_ratio: Share = 0.0
    """Warm-up as a share of all optimizer steps."""
    min_lr_ratio: Share = 0.0
    """Where ``linear`` and ``cosine`` end, as a share of ``lr``."""
    offload: bool = False
    """Keep float32 weights and moments in host memory and update them there: 12 bytes a weight
    less on the GPU, some seconds more per step. With several processes the same as
    ``fsdp_config.param_offload``."""


class FsdpConfig(Section):
    """How a network is spread over the ranks of a run (torch FSDP2). No effect in one process,
    where ``optim.offload`` and ``ref.offload`` save its memory.
    """

    param_offload: bool = False
    """Keep the shards and the optimizer in host memory; a layer is on the GPU
    only while it computes."""
    optimizer_offload: bool = False
    """The same: shards and optimizer stay together."""
    reshard_after_forward: bool | None = None
    """Give a layer up after its forward pass and gather it once more for its backward pass, in
    every micro-batch. false gathers each layer once an optimizer step and keeps all of the
    weights on every GPU during an update. null: true on GPUs, false on CPUs."""
    gradient_sync: Literal["micro_batch", "step"] | None = None
    """When gradients are added up over the processes. ``step``: once an optimizer step, until
    which each process keeps its own for all of the weights, in float32. null: every micro-batch
    on GPUs, once a step on CPUs."""
    fsdp_size: Annotated[int, Field(ge=-1)] = -1
    """Processes that share the shards of one copy, neighbours in rank; their number divides that
    of all processes. -1: all of them. The GPUs of a machine, to gather within machines only."""

    def reshards(self, device: str) -> bool:
        """``reshard_after_forward`` with what null stands for on ``cuda`` or ``cpu``."""
        chosen = self.reshard_after_forward
        return device == "cuda" if chosen is None else chosen

    def syncs_every_pass(self, device: str) -> bool:
        """Whether ``gradient_sync`` is ``micro_batch`` on ``cuda`` or ``cpu``."""
        return (self.gradient_sync or ("micro_batch" if device == "cuda" else "step")) != "step"


class ModelConfig(Section):
    """The policy's network and tokenizer."""

    path: str = ""
    """Folder with a Hugging Face model and its tokenizer, or a name of the hub."""
    dtype: DType = "auto"
    """Data type of the weights. ``auto``: bfloat16 on a GPU, float32 on CPU."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model folder. It is not sandboxed."""
    enable_gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    lora_rank: Annotated[int, Field(ge=0)] = 0
    """Rank of the low-rank adapters (package ``peft``) that are trained in place of the weights;
    0: none. The reference policy is then the model without them, at no memory."""
    lora_alpha: PositiveFloat = 16.0
    """Adapters are scaled by ``lora_alpha / lora_rank``."""
    target_modules: Names = ("all-linear",)
    """Layers with adapters: ends of their names, as ``[q_proj, v_proj]``, or ``all-linear`` for
    every linear layer but the output layer."""
    custom_chat_template: str | None = None
    """Chat template in place of the tokenizer's: a Jinja file, or the text of a template."""
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Passed to the chat template, for example ``{enable_thinking: false}``."""

    def dtype_on(self, device: str) -> str:
        """``dtype`` with what ``auto`` stands for on ``cuda`` or ``cpu``."""
        if self.dtype != "auto":
            return self.dtype
        return "bfloat16" if device == "cuda" else "float32"


class PolicyLossConfig(Section):
    """The loss of the policy update."""

    loss_mode: str = "vanilla"
    """``vanilla`` or ``ppo`` (clip with dual clip), ``gspo``, ``cispo``, ``reinforce``, or a path
    ``file.py:function`` or ``package.module:function``."""
    kwargs: dict[str, Any] = Field(default_factory=dict)
    """Further options of the loss function."""


class ActorConfig(Section):
    """The policy update."""

    optim: OptimConfig = OptimConfig()
    ppo_mini_batch_size: PositiveInt | None = None
    """Prompts per optimizer step; a prompt's whole group goes with it. null: all of a step's,
    so that there is one update per step."""
    ppo_epochs: PositiveInt = 1
    """Passes over the trajectories of a step."""
    ppo_max_token_len_per_gpu: PositiveInt = 16384
    """Tokens of one forward and backward pass. Changes memory and speed, never the gradient."""
    shuffle: bool = True
    """Shuffle prompts before cutting mini-batches."""
    clip_ratio: NonNegativeFloat | None = None
    """Epsilon of the clipped ratio, on both sides unless the next two say otherwise. null: the
    loss's own, which is 0.2 for ``vanilla`` and a few ten-thousandths for ``gspo``."""
    clip_ratio_low: NonNegativeFloat | None = None
    """Lower epsilon: ratios below 1 - this are clipped. null: ``clip_ratio``."""
    clip_ratio_high: NonNegativeFloat | None = None
    """Upper epsilon; 0.28 is DAPO's clip-higher. null: ``clip_ratio``."""
    clip_ratio_c: Annotated[float, Field(gt=1)] | None = 3.0
    """Dual clip: bound of the loss for negative advantages, as a multiple (ReTool uses 10). null:
    none."""
    policy_loss: PolicyLossConfig = PolicyLossConfig()
    loss_agg_mode: AggregationMode = "token-mean"
    """How token losses are averaged. ``seq-mean-token-sum-norm`` divides by a constant."""
    loss_scale_factor: PositiveInt | None = None
    """Constant of ``seq-mean-token-sum-norm``, in tokens. null: ``data.max_response_length``."""
    entropy_coeff: NonNegativeFloat = 0.0
    """Weight of the entropy bonus."""
    use_kl_loss: bool = False
    """Add a KL term towards the reference policy to the loss."""
    kl_loss_coef: NonNegativeFloat = 0.001
    """Weight of that term."""
    kl_loss_type: KLKind = "k3"
    """Estimator of that term: k1, k2, k3, abs; with a ``+`` its gradient is that of k2."""
    grad_clip: PositiveFloat = 1.0
    """Largest global gradient norm."""
    autocast: Annotated[
        Literal["off", "bfloat16", "float16"],
        OffWord,
    ] = "off"
    """Compute the forward pass in this type while the weights keep theirs."""
    fsdp_config: FsdpConfig = FsdpConfig()


class RefConfig(Section):
    """The frozen policy that KL terms are measured against. Loaded only when one is in use."""

    path: str | None = None
    """Model folder. null: the policy as it was before training."""
    offload: bool = False
    """Keep the reference in host memory; it is on the GPU only while it computes."""
    fsdp_config: FsdpConfig = FsdpConfig()


class SamplingConfig(Section):
    """How completions are drawn in validation."""

    temperature: NonNegativeFloat = 0.0
    """0 is greedy."""
    top_p: PositiveShare = 1.0
    """Nucleus sampling; 1 is off."""
    top_k: Annotated[int, Field(ge=-1)] = 0
    """Keep the k likeliest tokens; 0 or -1 is off."""
    n: PositiveInt = 1
    """Samples per validation prompt."""


class ServerConfig(Section):
    """A server that speaks OpenAI's protocol, for evaluation and chat (``rollout.name=openai``)."""

    url: str = ""
    """Its address, as ``http://127.0.0.1:8000/v1``."""
    model: str = ""
    """The model's name there. Empty: the only one that it serves."""
    api: Literal["auto", "completions", "completions_text", "chat", "chat_turns"] = "auto"
    """``completions`` sends the prompts of training as token ids, ``completions_text`` as text.
    ``chat`` sends messages and has the assistant's continued after a tool call (vLLM, SGLang);
    ``chat_turns`` sends tool output as a user's message. ``auto``: ``completions`` where
    ``model.path`` gives the tokenizer, else ``chat``."""
    api_key_env: str = "OPENAI_API_KEY"
    """Environment variable with the key, so that no file holds the secret. Unset: none is sent."""
    timeout_s: PositiveFloat = 300.0
    """Longest silence of the server, in seconds."""
    retries: Annotated[int, Field(ge=0)] = 6
    """Further attempts after 429, 5xx and broken connections, with growing pauses."""
    extra_body: dict[str, Any] = Field(default_factory=dict)
    """Further fields of each request, such as ``{return_token_ids: true}`` for vLLM; null takes a
    field out."""


class VLLMConfig(Section):
    """vLLM servers that the trainer starts and supervises (``rollout.name=vllm``)."""

    python: str | None = None
    """Interpreter of the environment that vLLM is installed in, with agent_r1 beside it. null: the
    trainer's own."""
    replicas: PositiveInt = 1
    """Servers, each with a copy of the model. More than one needs a device for each, which ``env``
    or the machine gives."""
    tensor_parallel_size: PositiveInt = 1
    """GPUs of one server."""
    quantization: str | None = None
    """What vLLM quantises weights to when it loads them, such as ``fp8``. Log-probabilities then
    differ from the trainer's: use ``rollout_correction``."""
    enforce_eager: bool = True
    """Skip compilation and CUDA graphs: starts sooner, decodes slower. false for long runs."""
    sleep: bool = False
    """Give the GPU's memory up while the trainer computes; for one GPU that both share."""
    timeout_s: PositiveFloat = 300.0
    """Seconds in which a server may compute nothing while a completion is asked for, before it
    counts as hung and is restarted. A full queue does not count."""
    start_timeout_s: PositiveFloat = 600.0
    """Seconds in which a server must be ready."""
    args: Names = ()
    """Further words of ``vllm serve``'s command line."""
    env: dict[str, str] = Field(default_factory=dict)
    """Further environment variables of the servers."""


class RolloutConfig(Section):
    """How trajectories are sampled in training."""

    name: str = "embedded"
    """Generation engine: ``embedded``; ``vllm`` (docs/scaling.md); ``auto`` (vLLM where there is a
    GPU and vLLM is installed, else embedded); a registered name or a dotted path; ``openai`` (a
    server, see ``rollout.server``) for evaluation and chat."""
    dtype: DType = "auto"
    """Type of the engine's matrix products. ``auto``: that of the weights. ``bfloat16`` on a CPU
    is much faster than ``float32`` and calls for ``actor.autocast=bfloat16``."""
    n: PositiveInt = 8
    """Trajectories per prompt: the size of a group."""
    temperature: PositiveFloat = 1.0
    """Sampling temperature; log-probabilities everywhere are those of the tempered distribution."""
    top_p: PositiveShare = 1.0
    """Nucleus sampling; 1 is off. Below 1 the sampled and the trained distribution differ."""
    top_k: Annotated[int, Field(ge=-1)] = 0
    """Keep the k likeliest tokens; 0 or -1 is off. Same caution as ``top_p``."""
    stop: Names = ()
    """Strings that end a turn, added to those that the environment declares itself."""
    stop_token_ids: tuple[int, ...] = ()
    """Token ids that end a turn, besides the tokenizer's end of sequence."""
    response_length: PositiveInt | None = None
    """Tokens of one turn. null: whatever is left of ``data.max_response_length``."""
    max_model_len: Annotated[int, Field(ge=2)] | None = None
    """Context window in tokens. null: ``max_prompt_length + max_response_length``."""
    max_num_seqs: PositiveInt = 128
    """Sequences that the engine decodes at once (its key-value cache slots), memory permitting."""
    gpu_memory_utilization: PositiveShare = 0.4
    """Share of the GPU's memory (on a CPU: of the machine's) for keys and values."""
    free_cache_engine: bool | None = None
    """Give that memory back between rollouts. Keeping it saves a GPU the recording of its decode
    steps at every rollout. null: keep it on a GPU where the memory plan has room for both."""
    max_concurrency: PositiveInt | None = None
    """Trajectories in flight at once. null: all of a step, or 32 on a server."""
    deterministic: bool = True
    """Embedded engine: schedule in virtual time, so that runs repeat to the last bit whatever the
    tools' latency. false: trajectories rejoin as soon as their tool answers, which is faster
    when tools are slow."""
    readmit_after: PositiveInt = 8
    """Embedded engine, if deterministic: decoding steps after which a sequence whose tool has
    answered goes on. Higher lets slower tools keep up, lower wastes fewer steps."""
    trajectory_timeout_s: PositiveFloat | None = 600.0
    """Wall-clock seconds of one trajectory, after which it counts as ``timeout``. null: none."""
    min_group: PositiveInt | None = None
    """Members that make a group complete: as soon as so many have finished, the others are cut
    off. null: all ``n``."""
    over_sampling: NonNegativeFloat = 0.0
    """Groups under way beyond those of a step, as a share of them. The step takes those that are
    finished first and cuts the stragglers off, whose tasks are sampled again. Favours what is
    quick to sample."""
    keep_cache: bool = True
    """When weights change under a trajectory: true keeps its keys and values, false computes them
    anew, which is exact and costs a prefill. Only with ``trainer.max_staleness`` above 0."""
    max_failed_share: Share = 0.2
    """Share of failed trajectories (tool or engine) in a step above which the run stops."""
    val_kwargs: SamplingConfig = SamplingConfig()
    server: ServerConfig = ServerConfig()
    vllm: VLLMConfig = VLLMConfig()
    endpoints: Names = ()
    """``vllm``: servers that run already, as ``http://host:port``, in place of starting any. They
    must see the trainer's files (``/dev/shm`` or the temporary folder)."""


class CriticModelConfig(Section):
    """The value network."""

    path: str | None = None
    """Model folder to start from. null: ``actor_rollout_ref.model.path``."""
    lora_rank: Annotated[int, Field(ge=0)] = 0
    """Rank of the critic's adapters; 0: all of its weights are trained."""
    lora_alpha: PositiveFloat = 16.0
    """Adapters are scaled by ``lora_alpha / lora_rank``."""
    target_modules: Names = ("all-linear",)
    """Layers with adapters, as for the policy."""
    fsdp_config: FsdpConfig = FsdpConfig()


class CriticConfig(Section):
    """The value function, used by the estimators that need one (``gae``, ``turn_gae``)."""

    model: CriticModelConfig = CriticModelConfig()
    optim: OptimConfig = OptimConfig(lr=1e-5)
    ppo_mini_batch_size: PositiveInt | None = None
    """Prompts per optimizer step. null: the actor's."""
    ppo_epochs: PositiveInt = 1
    """Passes over the trajectories of a step."""
    ppo_max_token_len_per_gpu: PositiveInt | None = None
    """Tokens of one forward and backward pass. null: the actor's."""
    cliprange_value: PositiveFloat | None = 0.5
    """Values move at most this far from the old ones per step. null: no clipping."""
    loss_agg_mode: AggregationMode = "token-mean"
    """How token losses are averaged."""
    grad_clip: PositiveFloat = 1.0
    """Largest global gradient norm."""


class ActorRolloutRefConfig(Section):
    """The policy in its three roles: updated, sampled from, and frozen as a reference."""

    model: ModelConfig = ModelConfig()
    actor: ActorConfig = ActorConfig()
    ref: RefConfig = RefConfig()
    rollout: RolloutConfig = RolloutConfig()
    nccl_timeout: PositiveFloat = 600.0
    """Several ranks: longest duration of a joint operation (an update, a forward pass over a batch,
    gathering the weights), in seconds. A rank that waits longer prints every thread's stack and
    ends."""
