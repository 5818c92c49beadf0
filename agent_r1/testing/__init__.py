"""Stand-ins and checks for tests, the project's own and its users'.

Nothing here patches anything: every stand-in implements the protocol of the real thing.
"""

from agent_r1.testing.check_env import EnvReport, check_tool_env
from agent_r1.testing.check_environment import check_environment
from agent_r1.testing.engine import HANG, EngineCall, Reply, ScriptedEngine
from agent_r1.testing.executor import FakeExecutor
from agent_r1.testing.logger import MemoryLogger
from agent_r1.testing.models import tiny_model
from agent_r1.testing.records import make_trajectory
from agent_r1.testing.tokenizer import byte_tokenizer, word_tokenizer

__all__ = [
    "HANG",
    "EngineCall",
    "EnvReport",
    "FakeExecutor",
    "MemoryLogger",
    "Reply",
    "ScriptedEngine",
    "byte_tokenizer",
    "check_environment",
    "check_tool_env",
    "make_trajectory",
    "tiny_model",
    "word_tokenizer",
]
