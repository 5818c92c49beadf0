"""Settings of the problem: data, credit, reward, tools, sandbox and the run itself."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    ByteSize,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
)

from agent_r1.config.policy import KLKind
from agent_r1.config.section import (
    CountOrAll,
    Names,
    NoneWord,
    OffWord,
    PositiveShare,
    Section,
    Share,
)


class CurriculumConfig(Section):
    """Online difficulty filtering: tasks without signal are sampled more seldom."""

    enable: bool = False
    """Remember how often each task was solved; sample tasks that are always or never solved less
    often."""
    solved: Share = 1.0
    """Success rate from which a task counts as solved."""
    hopeless: Share = 0.0
    """Success rate up to which a task counts as hopeless."""
    keep: Share = 0.25
    """Share of the turns of such a task in which it is sampled all the same."""
    momentum: PositiveShare = 0.5
    """Weight of the newest group in the remembered rate."""


class DataConfig(Section):
    """Where tasks come from and how long they may get."""

    train_files: Names = ()
    """Parquet, JSONL, JSON, CSV or TSV files, or ``generator:NAME`` (a registered name, or a path
    ``package.module:function`` or ``file.py:function``)."""
    val_files: Names = ()
    """The same for validation. Empty: no validation."""
    generator_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Arguments of the training generator."""
    val_generator_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Arguments of the validation generator, over those of ``generator_kwargs``."""
    prompt_key: str = "prompt"
    """Column with the prompt: chat messages or plain text."""
    answer_key: str = "reward_model.ground_truth"
    """Column with the reference answer; dots descend into nested columns."""
    data_source_key: str = "data_source"
    """Column with the name under which metrics group a task; where it is missing, the file's."""
    id_key: str | None = None
    """Column with unique ids of the tasks. null: file name and row number."""
    env_key: str = "env"
    """Column that names the environment of a row, in a run with several (``envs``)."""
    prompt_template: str | None = None
    """Text around plain-text prompts, in which ``{prompt}`` stands for the prompt column."""
    apply_chat_template: bool = False
    """Make a user message of plain-text prompts. false: the model continues them as they stand."""
    system_prompt: str | None = None
    """System message for prompts that have none; plain text becomes a chat with it."""
    skip_bad_rows: bool = False
    """Leave out rows that are no tasks, and report how many, which and why. false: an error."""
    train_batch_size: PositiveInt = 64
    """Prompts per training step (trajectories are this times ``rollout.n``)."""
    max_prompt_length: PositiveInt = 1024
    """Longest rendered prompt, in tokens."""
    max_response_length: PositiveInt = 4096
    """Longest response, in tokens: everything after the prompt, model and tool text together."""
    filter_overlong_prompts: bool = True
    """Leave out prompts above the limit and report how many. false: such a prompt is an error."""
    shuffle: bool = True
    """Shuffle the training tasks anew in every epoch."""
    seed: int | None = None
    """Seed of the order. null: ``trainer.seed``."""
    curriculum: CurriculumConfig = CurriculumConfig()
    train_max_samples: CountOrAll = None
    """Use this many training tasks only. null: all."""
    val_max_samples: CountOrAll = None
    """Use this many validation tasks only. null: all."""


class KLControlConfig(Section):
    """The weight of the KL penalty in the reward."""

    type: Literal["fixed", "adaptive"] = "fixed"
    """``adaptive`` moves the weight so that the KL approaches its target."""
    kl_coef: NonNegativeFloat = 0.001
    """The weight, or its start."""
    target_kl: PositiveFloat = 0.1
    """Target of the adaptive controller, in nats per token."""
    horizon: PositiveInt = 10000
    """How slowly the adaptive controller reacts, in trajectories."""


class FilterGroupsConfig(Section):
    """Dynamic sampling (DAPO): groups whose members all have the same score give no gradient."""

    enable: bool = False
    """Drop such groups and sample further prompts until the batch is full."""
    metric: str = "reward"
    """What must vary within a group: ``reward`` or a part of the reward, such as ``accuracy``."""
    max_num_gen_batches: PositiveInt = 10
    """Batches of prompts to try per step before training on what there is."""


class RolloutCorrectionConfig(Section):
    """Importance weights for trajectories sampled from another distribution than the policy's."""

    rollout_is: Annotated[Literal["auto", "none", "token", "sequence", "geometric"], NoneWord] = (
        "auto"
    )
    """Level at which the weights exp(old - rollout) are formed; ``geometric`` is the mean over
    the tokens of a sequence. ``auto``: ``token`` with ``trainer.max_staleness`` above 0 (the
    decoupled objective of AReaL, its weights truncated), else ``none``."""
    mode: Literal["truncate", "mask", "drop"] = "truncate"
    """``truncate`` caps weights at the upper threshold; ``mask`` zeroes those outside both;
    ``drop`` uses no weights and removes what is outside both from the loss and its divisors."""
    rollout_is_threshold: PositiveFloat = 2.0
    """Upper threshold of the weight."""
    rollout_is_threshold_lower: NonNegativeFloat = 0.5
    """Lower threshold, used by ``mask`` and ``drop``."""
    bypass_mode: bool = False
    """Take the engine's log-probabilities as the old policy's instead of computing them anew."""


class ClipCovConfig(Section):
    """Clip-Cov (arXiv 2505.22617): no gradient for a few tokens that make entropy fall most."""

    ratio: Share = 0.0
    """Share of the action tokens, drawn among those between the bounds. 0: off; the paper's is
    0.0002."""
    low: float = 1.0
    """Least covariance of log-probability and advantage of such a token."""
    high: float = 5.0
    """Largest covariance of such a token."""


class DistillationConfig(Section):
    """On-policy distillation: a teacher grades each token that the policy sampled."""

    teacher: str | None = None
    """Model folder or Hub name of a teacher with the policy's tokenizer, loaded beside it."""
    server: str | None = None
    """In its place the address of a server that gives log-probabilities of prompts (vLLM), as
    http://127.0.0.1:8000/v1."""
    server_model: str = ""
    """Name of the teacher at the server."""
    token_env: str = "AGENT_R1_TEACHER_TOKEN"
    """Environment variable with the server's bearer token."""
    form: Literal["sampled", "topk", "exact"] = "sampled"
    """What is taken of the divergence: its value at the sampled token as an advantage
    (sampled), or its gradient over the teacher's most probable tokens (topk) or over all
    (exact, a local teacher only)."""
    topk: PositiveInt = 20
    """Number of tokens of form topk; all others count as one. vLLM gives 20 unless told."""
    coef: NonNegativeFloat = 1.0
    """Weight of the teacher beside another estimator than opd."""
    clip: PositiveFloat | None = 10.0
    """Largest magnitude of a token's advantage by the teacher, in nats, with form sampled. null:
    unbounded."""

    @property
    def given(self) -> bool:
        """Whether there is a teacher."""
        return bool(self.teacher or self.server)

    @property
    def tokens(self) -> int | None:
        """How many tokens of each distribution a teacher tells (None: all)."""
        return self.topk if self.form == "topk" else None

    @property
    def as_advantage(self) -> bool:
        """Whether a teacher's word is an advantage, and no term of the loss."""
        return self.given and self.form == "sampled"


OutcomeTreatment = Literal["count", "penalise", "bootstrap", "mask", "drop"]


class OutcomePolicyConfig(Section):
    """How trajectories that a limit cut short are treated.

    ``count``: scored like any other. ``penalise``: ``penalty`` is subtracted from the reward.
    ``bootstrap``: the critic's value stands for the missing rest (``gae`` and ``turn_gae``
    only). ``mask``: in the group's baseline, but no gradient. ``drop``: neither. Trajectories
    that failed through no fault of the model (``tool_error``, ``engine_error``) are always
    dropped.
    """

    turn_limit: OutcomeTreatment = "count"
    """The environment wanted another turn than ``tool.max_turns`` allows."""
    length: OutcomeTreatment = "count"
    """``data.max_response_length`` was used up; ``mask`` is DAPO's overlong filtering."""
    context: OutcomeTreatment = "count"
    """The next prompt would not have fitted into ``rollout.max_model_len``."""
    timeout: OutcomeTreatment = "mask"
    """``rollout.trajectory_timeout_s`` passed: it depends on the machine, hence not counted."""
    penalty: NonNegativeFloat = 1.0
    """What ``penalise`` subtracts from the reward."""


class AlgorithmConfig(Section):
    """How rewards become advantages."""

    adv_estimator: str = "grpo"
    """``gae``, ``turn_gae``, ``grpo``, ``dr_grpo``, ``gigpo``, ``rloo``, ``reinforce_plus_plus``,
    ``reinforce_plus_plus_baseline``, ``remax``, ``opd`` (distillation alone), or a
    function of your own: ``file.py:function`` or ``package.module:function``."""
    adv_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Further options of the estimator, such as ``step_advantage_w``."""
    gamma: Share = 1.0
    """Discount per action token (per turn for the turn-level estimators)."""
    lam: Share = 1.0
    """Lambda of GAE."""
    norm_adv_by_std_in_grpo: bool = True
    """Divide by the group's standard deviation. false is Dr. GRPO."""
    use_kl_in_reward: bool = False
    """Subtract the KL towards the reference policy from each token's reward."""
    kl_penalty: KLKind = "k1"
    """Estimator of that KL."""
    kl_ctrl: KLControlConfig = KLControlConfig()
    filter_groups: FilterGroupsConfig = FilterGroupsConfig()
    process_reward_coef: NonNegativeFloat = 1.0
    """Weight of per-turn process rewards, where the reward function gives any, against the outcome
    reward. 0: they are only logged."""
    outcome_policy: OutcomePolicyConfig = OutcomePolicyConfig()
    rollout_correction: RolloutCorrectionConfig = RolloutCorrectionConfig()
    clip_cov: ClipCovConfig = ClipCovConfig()
    distillation: DistillationConfig = DistillationConfig()


class OverlongBufferConfig(Section):
    """Soft overlong punishment (DAPO, equation 13)."""

    enable: bool = False
    """Punish responses that come near the limit."""
    len: PositiveInt = 512
    """Width of the zone before ``data.max_response_length``, in tokens."""
    penalty_factor: NonNegativeFloat = 1.0
    """Punishment at the end of the zone; it grows linearly from 0 at its beginning."""


class RewardConfig(Section):
    """How a finished trajectory is scored."""

    name: str = "math"
    """A registered name, ``package.module:function`` or ``file.py:function``."""
    kwargs: dict[str, Any] = Field(default_factory=dict)
    """Arguments of the reward function besides the trajectory."""
    timeout_s: PositiveFloat = 30.0
    """Seconds for scoring one trajectory."""
    overlong_buffer: OverlongBufferConfig = OverlongBufferConfig()


class TrainerConfig(Section):
    """The run: its length, its folder, its checkpoints and validations."""

    total_epochs: PositiveInt = 1
    """Passes over the training tasks."""
    total_training_steps: PositiveInt | None = None
    """Steps of the run. null: ``total_epochs`` decides; otherwise this wins."""
    save_freq: Annotated[int, Field(ge=-1)] = -1
    """Steps between checkpoints that stay. -1 or 0: at the end only."""
    save_minutes: PositiveFloat | None = 10.0
    """Longest time between checkpoints, in minutes: a killed run loses at most this and the step
    under way. Such a checkpoint is replaced by the next. null: ``save_freq`` alone decides."""
    test_freq: Annotated[int, Field(ge=-1)] = -1
    """Steps between validations. -1 or 0: at the end only."""
    val_before_train: bool = True
    """Validate before the first step."""
    max_staleness: NonNegativeInt = 0
    """Most updates between the policy that sampled a trajectory and the policy that is trained on
    it. 0: sampling and training alternate, and runs repeat to the last bit. Above: they overlap,
    and trajectories continue while the weights change (docs/scaling.md)."""
    stale: Literal["wait", "drop"] = "wait"
    """What becomes of a group that would get too old. ``wait``: the step that is the last to take
    it waits for it. ``drop``: it is cut off, and its task is sampled again."""
    critic_warmup: NonNegativeInt = 0
    """Steps in which only the critic learns."""
    logger: Names = ("console",)
    """Any of ``console``, ``wandb``, ``tensorboard``, ``mlflow``, ``trackio``, or the path of a
    class (docs/runs.md); ``metrics.jsonl`` is always written."""
    project_name: Annotated[str, Field(min_length=1)] = "agent_r1"
    """Groups runs, in W&B and on disk."""
    experiment_name: Annotated[str, Field(min_length=1)] = "default"
    """Names this run."""
    default_local_dir: str | None = None
    """Run folder. null: ``runs/<project_name>/<experiment_name>``."""
    resume_mode: Literal["auto", "disable", "resume_path"] = "auto"
    """``auto`` continues from the newest checkpoint of the run folder, if there is one."""
    resume_from_path: str | None = None
    """The checkpoint to continue from when ``resume_mode`` is ``resume_path``."""
    accept_changes: bool = False
    """Continue a run although its environment, reward or models differ from those of the steps
    before. Without it such a change is an error; other changes are printed and recorded."""
    max_ckpt_to_keep: CountOrAll = None
    """Checkpoints kept; older ones are removed. null: all."""
    export_policy: Literal["always", "end"] = "always"
    """Several processes: which checkpoints get the policy as a model folder too, written while
    training goes on. ``end``: the last one; ``agent-r1 export`` makes it of any other."""
    seed: NonNegativeInt = 0
    """Seed of everything random: weights, order, sampling, sandboxed programs."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """``auto``: the GPU if there is one."""
    nnodes: PositiveInt = 1
    """Machines. On one, ``agent-r1 train`` starts a process for each GPU itself; on several, Ray
    does (``ray.address``), or torchrun on each of them (docs/scaling.md)."""
    n_gpus_per_node: PositiveInt = 1
    """GPUs of each machine; without GPUs, processes."""
    layout: Literal["colocated", "apart"] = "colocated"
    """Where Ray places engines: ``colocated`` on the machine of rank 0, on its GPUs; ``apart``
    (``rollout.name=vllm``) each on GPUs of its own, anywhere in the cluster."""
    max_restarts: NonNegativeInt = 3
    """How often the processes of a run are started again, from the newest checkpoint, after one
    of them was lost."""
    memory_check: Annotated[
        Literal["error", "warn", "off"],
        OffWord,
    ] = "error"
    """What to do if the memory plan (``agent-r1 memory``) says that a GPU is too small."""
    num_threads: PositiveInt | None = None
    """CPU threads of torch. null: torch's own choice."""
    trajectory_file: Literal["arrow", "jsonl"] = "arrow"
    """How trajectories are kept: ``arrow`` is a third as large (``trajectories.arrows``); ``jsonl``
    is text, a line each. All commands read both, and ``agent-r1 export-trajectories`` turns the
    one into the other. A run that is continued keeps its form."""
    token_file: bool = True
    """Whether ``tokens.arrows`` keeps advantage, entropy and the difference between engine and
    trainer of every trained token, for ``agent-r1 view``."""
    log_val_generations: NonNegativeInt = 0
    """Validation trajectories sent to the loggers each time."""

    @property
    def run_dir(self) -> Path:
        """Where the run's files are."""
        default = Path("runs") / self.project_name / self.experiment_name
        return Path(self.default_local_dir).expanduser() if self.default_local_dir else default


class RayConfig(Section):
    """The cluster that a run is placed on and that ``agent-r1 doctor`` looks at (package
    ``ray``).
    """

    address: str | None = None
    """A running Ray cluster: ``auto``, or ``host:port`` of its head; ``local`` starts one on this
    machine. null: this machine alone, unless ``trainer.nnodes`` is above 1 (then ``RAY_ADDRESS``
    of the environment, or ``local``)."""
    patience_s: PositiveFloat = 600.0
    """Seconds that a restart waits for enough machines after one was lost."""


class ContextConfig(Section):
    """How long episodes are kept inside of the context window."""

    policy: Annotated[Literal["none", "keep_last", "shorten", "summarise"], NoneWord] = "none"
    """``keep_last`` leaves out all but the opening and the last turns, ``shorten`` cuts older
    observations, ``summarise`` asks the model for a summary that takes the place of everything
    but the opening. Whatever is changed begins a new training sample."""
    threshold: PositiveShare = 0.7
    """Share of the context window from which the policy acts."""
    keep_turns: PositiveInt = 4
    """Turns that ``keep_last`` keeps and ``shorten`` leaves as they are."""
    max_old_observation: PositiveInt = 200
    """Characters that ``shorten`` leaves of an older observation."""
    request: str = (
        "The context is nearly full. Write a summary of what you found out so far and of what is "
        "left to do; you will see it in the place of everything after the task."
    )
    """What asks for the summary."""
    resume: str = "Go on with the task."
    """What is said after the summary."""


class ToolConfig(Section):
    """The environment and the tools that the model acts in."""

    env: str = "retool"
    """Tool environment: a registered name, ``package.module:Class`` or ``file.py:Class``."""
    env_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Arguments of the environment besides ``tools`` and ``max_tool_response_length``."""
    tools: Names = ("python",)
    """Tools: registered names, or ``package.module:NAME`` or ``file.py:NAME`` of a tool class or a
    function, whose signature and docstring describe it to the model."""
    tool_kwargs: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Arguments of each tool, by the name under which ``tools`` lists it. Those of a function are
    filled in and hidden from the model."""
    mcp: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """MCP servers whose tools are added, by names of your choice: ``command`` and ``args`` of a
    program, or ``url``, and more (docs/mcp.md)."""
    context: ContextConfig = ContextConfig()
    max_turns: PositiveInt = 8
    """Turns of the model in one trajectory."""
    max_tool_response_length: PositiveInt = 2048
    """Longest tool response, in characters; the rest is cut."""
    timeout_s: PositiveFloat = 60.0
    """Seconds for one environment step; afterwards the trajectory ends with ``tool_error``."""


class SandboxLimitsConfig(Section):
    """Bounds of one program. Sizes are bytes and may be written as ``512MiB``."""

    wall_seconds: PositiveFloat = 10.0
    """Wall-clock seconds, without queueing."""
    cpu_seconds: PositiveFloat | None = None
    """Processor seconds. null: as many as the wall clock allows."""
    memory_bytes: ByteSize = ByteSize(1 << 30)
    """Memory of all processes of the program together."""
    output_bytes: ByteSize = ByteSize(1 << 20)
    """Standard output and standard error, each."""
    processes: PositiveInt = 64
    """Processes and threads alive at once."""
    file_bytes: ByteSize = ByteSize(64 << 20)
    """All files of the working directory together."""
    compile_seconds: PositiveFloat = 30.0
    """Seconds for compiling, in compiled languages."""


class SandboxConfig(Section):
    """Where programs of the model run."""

    executor: str = "embedded"
    """``embedded`` (started by the trainer itself), ``http``, ``ray`` (a service on every node of
    the run's Ray cluster), or a dotted path."""
    endpoints: Names = ()
    """Addresses of sandbox services for ``http``, as ``http://host:port``; load is balanced."""
    token_env: str = "AGENT_R1_SANDBOX_TOKEN"
    """Environment variable with the service's bearer token, so that no file holds the secret."""
    workers: PositiveInt | None = None
    """Programs that run at once. null: two per processor, at least eight."""
    isolation: Literal["strict", "landlock", "process"] = "strict"
    """What the host must provide. ``strict``: namespaces of its own for every program. Where the
    kernel refuses them, a weaker level is used only if it is named here."""
    session: Annotated[Literal["none", "trajectory"], NoneWord] = "none"
    """``trajectory``: calls of one trajectory share an interpreter and so its variables."""
    limits: SandboxLimitsConfig = SandboxLimitsConfig()
