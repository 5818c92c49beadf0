from agent_r1.config.load import load_config as load_config
from agent_r1.config.schema import Config as Config
from agent_r1.tool.base import BaseTool as BaseTool
from agent_r1.tool.base import BaseToolEnv as BaseToolEnv
from agent_r1.trainer.library import Step as Step
from agent_r1.trainer.library import Trainer as Trainer
from agent_r1.types import Reward as Reward
from agent_r1.types import Task as Task
from agent_r1.types import Trajectory as Trajectory

__version__: str
__all__: list[str]
