"""The records of an episode: what flows from a prompt to a gradient.

All packages above exchange these records. They are frozen; a trajectory that gets a reward is a
new trajectory (``dataclasses.replace``).

Token ids that the model sampled are never re-tokenised: text is decoded from ids, never the other
way round.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from agent_r1.errors import RecordError


class Finish(StrEnum):
    """Why one call of the engine stopped sampling."""

    EOS = "eos"
    """The model wrote its end-of-sequence token, which is part of the completion."""
    STOP = "stop"
    """A stop string was completed; the whole token that completed it is kept."""
    LENGTH = "length"
    """The token budget of the call was used up."""


class Outcome(StrEnum):
    """Why a trajectory ended. ``docs/algorithms.md`` states the reward policy of each."""

    FINISHED = "finished"
    """The environment declared the trajectory over."""
    TURN_LIMIT = "turn_limit"
    """The environment wanted another turn; the configured number was used up."""
    LENGTH = "length"
    """The response budget (model and tool tokens together) was used up."""
    CONTEXT = "context"
    """The next prompt would not have fitted into the engine's context window."""
    TIMEOUT = "timeout"
    """The wall-clock deadline of the trajectory passed."""
    TOOL_ERROR = "tool_error"
    """The environment, a tool or the sandbox behind it failed. Not the model's fault."""
    ENGINE_ERROR = "engine_error"
    """The engine failed to produce a completion. Not the model's fault."""

    @property
    def terminated(self) -> bool:
        """The episode reached an end of its own (Gymnasium's sense of the word)."""
        return self is Outcome.FINISHED

    @property
    def truncated(self) -> bool:
        """A limit of ours cut the episode short; its value may be bootstrapped."""
        return self in (Outcome.TURN_LIMIT, Outcome.LENGTH, Outcome.CONTEXT, Outcome.TIMEOUT)

    @property
    def failed(self) -> bool:
        """Environment or engine failed: the trajectory is in neither training nor baselines."""
        return self in (Outcome.TOOL_ERROR, Outcome.ENGINE_ERROR)


Message = Mapping[str, Any]
"""One chat message: ``{"role": "user", "content": "..."}``, maybe with
``tool_calls``, ``tool_call_id``, ``name`` or ``reasoning_content``; see
:func:`agent_r1.messages.read_messages`."""


@dataclass(frozen=True, slots=True)
class Task:
    """One problem of a data set.

    ``prompt`` is a tuple of chat messages, or plain text that is continued as it stands.
    ``answer`` is what the reward compares with and is never shown to the model. ``tools`` are
    announced to it beside those of the environment, as OpenAI's protocol describes functions.
    ``env`` names the environment it is a task of, in a run with several (``envs``).
    """

    id: str
    prompt: tuple[Message, ...] | str
    answer: Any = None
    data_source: str = "unknown"
    extra: Mapping[str, Any] = field(default_factory=dict)
    tools: tuple[Mapping[str, Any], ...] = ()
    env: str = ""


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How one completion is sampled.

    ``seed`` determines every random draw of the completion together with the logits, so
    that a row's tokens do not depend on which other rows happen to share its batch.
    ``temperature`` 0 is greedy. ``top_k`` 0 and ``top_p`` 1 are off.
    """

    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise RecordError(f"max_new_tokens must be at least 1, not {self.max_new_tokens}")
        if self.temperature < 0 or not 0 < self.top_p <= 1 or self.top_k < 0:
            raise RecordError(f"temperature >= 0, 0 < top_p <= 1, top_k >= 0 expected: {self}")


Versions = tuple[tuple[int, int], ...]
"""Which policy wrote what: runs of ``(first token, version)``, the first at token 0."""


@dataclass(frozen=True, slots=True)
class Completion:
    """What one engine call sampled.

    ``logprobs[i]`` is the log-probability of ``token_ids[i]`` under the *untempered*
    distribution if the temperature was 1 and under the tempered one otherwise; that is,
    under the distribution that was sampled from before ``top_p``/``top_k`` cut it. It is
    None where the engine does not know: such a completion can be graded, not trained on.

    ``versions`` are the versions of the weights that sampled the tokens. They change within
    a completion when weights are replaced while it is sampled.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...] | None
    finish: Finish
    versions: Versions = ((0, 0),)
    stop: str | None = None
    """The stop string that ended the completion, when ``finish`` is ``STOP``."""
    counted: int | None = None
    """Tokens as a server counted them, where ``token_ids`` are characters and not its tokens."""

    @property
    def length(self) -> int:
        """How many tokens the model wrote."""
        return len(self.token_ids) if self.counted is None else self.counted

    @property
    def policy_version(self) -> int:
        """That of the last token, and so the newest."""
        return self.versions[-1][1]

    def token_versions(self) -> tuple[int, ...]:
        """The version of every token."""
        ends = [first for first, _ in self.versions[1:]] + [len(self.token_ids)]
        runs = zip(self.versions, ends, strict=True)
        return tuple(version for (first, version), end in runs for _ in range(first, end))

    def cut(self, length: int, finish: Finish, stop: str | None = None) -> Completion:
        """The first ``length`` tokens, as if sampling had ended there."""
        logprobs = None if self.logprobs is None else self.logprobs[:length]
        versions = tuple(run for run in self.versions if run[0] < length) or self.versions[:1]
        return Completion(self.token_ids[:length], logprobs, finish, versions, stop)

    def __post_init__(self) -> None:
        firsts = [first for first, _ in self.versions]
        if firsts[:1] != [0] or sorted(set(firsts)) != firsts:
            raise RecordError(f"runs of versions begin at token 0 and ascend, not {self.versions}")
        if firsts[-1] >= max(len(self.token_ids), 1):
            raise RecordError(f"{len(self.token_ids)} tokens but a version from {firsts[-1]} on")
        if self.logprobs is not None and len(self.token_ids) != len(self.logprobs):
            raise RecordError(
                f"{len(self.token_ids)} sampled tokens but {len(self.logprobs)} log-probabilities"
            )


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One executed tool call of a turn, as the environment reported it."""

    success: bool
    seconds: float


@dataclass(frozen=True, slots=True)
class Turn:
    """One cycle of the decision process: state, action, next observation.

    ``prompt_ids`` is the whole context the completion was sampled from. ``text`` is the
    completion decoded, cut right after the stop string. ``observation_ids`` is empty on
    a final turn.
    """

    prompt_ids: tuple[int, ...]
    completion: Completion
    text: str
    observation_ids: tuple[int, ...] = ()
    observation_text: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    generate_seconds: float = 0.0
    tool_seconds: float = 0.0
    reward: float | None = None
    """What the environment gave for the action; None where it gives no rewards."""

    @property
    def next_prompt_ids(self) -> tuple[int, ...]:
        """The context of the following turn, unless the environment edits history."""
        return self.prompt_ids + self.completion.token_ids + self.observation_ids


@dataclass(frozen=True, slots=True)
class Reward:
    """The score of one trajectory.

    ``value`` is the scalar that training maximises. ``parts`` names its ingredients for
    the logs (``accuracy``, ``format`` …). ``per_turn`` holds optional process rewards,
    one per turn; only ``algorithms/`` places any of these on tokens.
    """

    value: float
    parts: Mapping[str, float] = field(default_factory=dict)
    per_turn: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        numbers = [self.value, *self.parts.values(), *(self.per_turn or ())]
        if not all(math.isfinite(x) for x in numbers):
            raise RecordError(f"a reward must be finite, not {self}")


@dataclass(frozen=True, slots=True)
class Trajectory:
    """One episode, complete.

    ``group_id`` is shared by the siblings sampled for one task; ``index`` counts them.
    ``reward`` is ``None`` while the trajectory is not scored, which is not a score of 0.
    ``error`` says what failed when ``outcome.failed``, or why scoring failed. ``state`` is the
    environment's final state, plain data, and ``opening`` the text of the first context where
    the environment had a part in it.
    """

    task: Task
    group_id: str
    index: int
    turns: tuple[Turn, ...]
    outcome: Outcome
    reward: Reward | None = None
    error: str | None = None
    seconds: float = 0.0
    state: Any = None
    opening: str = ""

    @property
    def id(self) -> str:
        return f"{self.group_id}/{self.index}"

    @property
    def model_text(self) -> str:
        """Everything the model wrote and nothing that a tool wrote."""
        return "".join(turn.text for turn in self.turns)

    @property
    def final_text(self) -> str:
        """What the model wrote in its last turn, where an answer belongs."""
        return self.turns[-1].text if self.turns else ""

    @property
    def transcript(self) -> str:
        """Model and tool text in order, for people to read. Never grade this."""
        return "".join(turn.text + turn.observation_text for turn in self.turns)

    @property
    def response_length(self) -> int:
        """Tokens that the model wrote (tool tokens are not counted)."""
        return sum(turn.completion.length for turn in self.turns)

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        return tuple(call for turn in self.turns for call in turn.tool_calls)

    def samples(self) -> tuple[TrainSample, ...]:
        """Token sequences to train on.

        Turns are merged into one sequence while each prompt extends the one before; an
        environment that edited history begins a new sequence there, because the model
        acted on that context and no other.
        """
        samples: list[TrainSample] = []
        first = 0
        for i in range(1, len(self.turns) + 1):
            if i == len(self.turns) or not self._extends(i):
                samples.append(_merge(self.turns[first:i], first))
                first = i
        return tuple(samples)

    def _extends(self, i: int) -> bool:
        return self.turns[i].prompt_ids == self.turns[i - 1].next_prompt_ids


@dataclass(frozen=True, slots=True)
class TrainSample:
    """One token sequence ``[T]`` with what training needs to know of each token.

    ``loss_mask[t]`` is 1 where the model sampled token ``t`` and 0 on prompt and tool
    tokens. ``behavior_logprobs[t]`` is 0.0 where the mask is 0; they are None where the
    engine gave none, and no batch takes such a sample. ``turn_index[t]`` is the turn of the
    trajectory that sampled token ``t``, and ``versions[t]`` the version of the policy that
    did, or -1.
    """

    token_ids: tuple[int, ...]
    loss_mask: tuple[int, ...]
    behavior_logprobs: tuple[float, ...] | None
    turn_index: tuple[int, ...]
    versions: tuple[int, ...]

    def __post_init__(self) -> None:
        lengths = {
            len(self.token_ids),
            len(self.loss_mask),
            len(self.turn_index),
            len(self.versions),
        }
        if self.behavior_logprobs is not None:
            lengths.add(len(self.behavior_logprobs))
        if len(lengths) != 1:
            raise RecordError(f"the sequences of a sample differ in length: {sorted(lengths)}")


def _merge(turns: Sequence[Turn], first_index: int) -> TrainSample:
    """Lay out ``prompt, action, observation, action …`` with masks from turn structure.

    The observation after the last action is dropped: nothing is learned from it and no
    action follows it.
    """
    ids: list[int] = list(turns[0].prompt_ids)
    mask: list[int] = [0] * len(ids)
    logprobs: list[float] = [0.0] * len(ids)
    index: list[int] = [-1] * len(ids)
    versions: list[int] = [-1] * len(ids)
    known = all(turn.completion.logprobs is not None for turn in turns)
    for offset, turn in enumerate(turns):
        action = turn.completion
        ids += action.token_ids
        mask += [1] * len(action.token_ids)
        logprobs += action.logprobs or ()
        index += [first_index + offset] * len(action.token_ids)
        versions += action.token_versions()
        if offset + 1 < len(turns):
            gap = len(turn.observation_ids)
            ids += turn.observation_ids
            mask += [0] * gap
            logprobs += [0.0] * gap
            index += [-1] * gap
            versions += [-1] * gap
    return TrainSample(
        tuple(ids),
        tuple(mask),
        tuple(logprobs) if known else None,
        tuple(index),
        tuple(versions),
    )
