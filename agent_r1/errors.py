"""The exception tree.

Every error that a user can cause carries the remedy in its message. Failures of the
outside world (a sandbox, an engine, a disk) are translated into these types where they
enter the project and nowhere else.
"""

from __future__ import annotations

import traceback


class AgentR1Error(Exception):
    """The root: catch it to catch everything that this package raises on purpose."""


class ConfigError(AgentR1Error):
    """A configuration key, value or combination is wrong. Raised before anything heavy runs."""


class DataError(AgentR1Error):
    """A data file or a generator gave something that is not a usable task."""


class MessageError(AgentR1Error, ValueError):
    """A chat message holds what no model could be given."""


class RecordError(AgentR1Error, ValueError):
    """A record was built from parts that contradict each other."""


class ModelError(AgentR1Error):
    """A model folder is incomplete, unsupported or does not fit the tokenizer."""


class TemplateError(ModelError):
    """A chat template rewrites history or cannot render the messages."""


class RegistryError(AgentR1Error, LookupError):
    """A name is not registered and is no importable dotted path."""


class ToolError(AgentR1Error):
    """A tool cannot be run at all: infrastructure, not a failing program."""


class ToolArgumentError(ToolError, ValueError):
    """Arguments do not match the tool's JSON schema. Environments show this to the model."""


class EnvironmentContractError(AgentR1Error):
    """A tool environment broke the contract of :class:`agent_r1.tool.base.BaseToolEnv`."""


class SandboxError(ToolError):
    """The sandbox itself failed: unreachable, broken, overloaded. Never program output."""


class SandboxUnavailable(SandboxError):
    """No sandbox answers, or this kernel denies a primitive that isolation needs."""


class SandboxOverloaded(SandboxError):
    """The queue is full. Trying again later is right."""


class LanguageUnavailable(SandboxError):
    """The toolchain of the asked language is not installed on the host."""


class EngineError(AgentR1Error):
    """The generation engine failed."""


class ContextExceeded(EngineError):
    """A prompt does not fit into the model's context, as only its server could tell."""


class RankError(AgentR1Error):
    """A process of a worker that is spread over several was lost, or they do not fit together."""


class RewardError(AgentR1Error):
    """A reward function raised, returned no number, or ran out of time."""


class RolloutFailed(AgentR1Error):
    """So many trajectories of a step failed that training on the rest would mislead."""


class ClusterError(AgentR1Error):
    """A cluster cannot be joined, is too small, or lost what the run cannot do without."""


class CheckpointError(AgentR1Error):
    """A checkpoint could not be written or read. The previous one is untouched."""


def describe(error: BaseException) -> str:
    """Type, message and the innermost place, short enough for a log line."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {error}{place}"
