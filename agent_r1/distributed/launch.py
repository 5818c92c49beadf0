"""Start the processes of a run on one machine, and start them again when one is lost.

Processes, rendezvous and signals are those of torch's elastic launcher, which is what
``torchrun`` runs. What is decided here is only whether to begin again: a process that was
killed or failed ends the others, and all of them continue from the newest checkpoint; a wrong
configuration, a checkpoint that cannot be read or written, or an interrupt ends the run.
"""

from __future__ import annotations

import os
import socket
import sys
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

from agent_r1.config.schema import Config
from agent_r1.distributed.ranks import HUNG, started_as_rank
from agent_r1.errors import RankError

RESTARTS = "AGENT_R1_RESTARTS"
"""Environment variable that tells the processes how often they have been started again."""

USAGE, DISK, INTERRUPTED = 2, 3, 130
"""Exit codes of the command line after which nothing is started again."""

_PATIENCE_S = "600"
"""After Ctrl-C the update under way is finished and a checkpoint is written."""

Start: TypeAlias = Callable[[Sequence[str], int], None]
"""Runs a command in so many processes; raises torch's ``ChildFailedError``."""


def needs_launch(config: Config) -> bool:
    """Whether this process is to start the run's processes, and not one of them."""
    trainer = config.trainer
    return trainer.nnodes == 1 and trainer.n_gpus_per_node > 1 and not started_as_rank()


def placement(config: Config) -> Iterator[str]:
    """What runs where, for a person, before it is started."""
    from agent_r1.trainer.build import pick_device

    device = pick_device(config.trainer.device)
    yield f"{config.trainer.n_gpus_per_node} processes on {socket.gethostname()}"
    for rank in range(config.trainer.n_gpus_per_node):
        place = f"cuda:{rank}" if device == "cuda" else device
        also = ", training loop, sampling, tools" if rank == 0 else ""
        yield f"  rank {rank}  {place:<7}  shards of the networks{also}"


def launch(
    config: Config,
    arguments: Sequence[str],
    *,
    say: Callable[[str], None] = print,
    start: Start | None = None,
) -> None:
    """Run ``agent-r1 ARGUMENTS`` in as many processes as are configured, until it is done.

    Raises:
        RankError: they failed more than ``trainer.max_restarts`` times.
        SystemExit: with the exit code of a process that found the configuration wrong, or of
            an interrupt.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    for line in placement(config):
        say(line)
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", _PATIENCE_S)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    command = ("-m", "agent_r1", *arguments)
    most = config.trainer.max_restarts
    for restarts in range(most + 1):
        os.environ[RESTARTS] = str(restarts)
        try:
            return (start or _start)(command, config.trainer.n_gpus_per_node)
        except SignalException as error:
            raise SystemExit(128 + error.sigval) from None
        except ChildFailedError as error:
            rank, failure = error.get_first_failure()
            if failure.exitcode in (USAGE, DISK, INTERRUPTED):
                raise SystemExit(failure.exitcode) from None
            reason = f"rank {rank} {_ended(failure.exitcode)}"
            if restarts == most:
                raise RankError(
                    f"{reason}, and trainer.max_restarts={most} restarts are used up. Its own "
                    "output above says why; the same command continues from the newest checkpoint"
                ) from None
            say(f"{reason}; restart {restarts + 1} of at most {most} from the newest checkpoint")
    return None


def restarts_so_far() -> int:
    """How often the processes of this run have been started again."""
    return int(os.environ.get(RESTARTS, "0"))


def _start(command: Sequence[str], count: int) -> None:
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    settings = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        local_addr="127.0.0.1",
        max_restarts=0,
    )
    elastic_launch(settings, sys.executable)(*command)


def _ended(exitcode: int) -> str:
    if exitcode == HUNG:
        return "waited for the others too long (the stacks above say in what)"
    return f"was killed by signal {-exitcode}" if exitcode < 0 else f"failed with code {exitcode}"
