"""Start the processes of a run, and start them again when one is lost.

On one machine processes, rendezvous and signals are those of torch's elastic launcher, which is
what ``torchrun`` runs; on several Ray places and watches the same processes
(:mod:`agent_r1.distributed.ray_start`). What is decided here is only whether to begin again: a
process that was killed or failed ends the others, and all of them continue from the newest
checkpoint; a wrong configuration, a checkpoint that cannot be read or written, or an interrupt
ends the run.
"""

from __future__ import annotations

import os
import socket
import sys
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TypeAlias

from agent_r1.config.schema import Config
from agent_r1.distributed.ranks import HUNG, started_as_rank
from agent_r1.errors import RankError

RESTARTS = "AGENT_R1_RESTARTS"
"""Environment variable that tells the processes how often they have been started again."""

USAGE, DISK, INTERRUPTED = 2, 3, 130
FINAL = (USAGE, DISK, INTERRUPTED)
"""Exit codes of the command line after which nothing is started again."""

_PATIENCE_S = "600"
"""After Ctrl-C the update under way is finished and a checkpoint is written."""


class Lost(Exception):
    """A process of the run ended before the run did, or cannot be reached any more.

    ``who`` names it, ``how`` says what became of it. ``exitcode`` is ``None`` where its machine
    or its supervisor is gone, too.
    """

    def __init__(self, who: str, how: str, exitcode: int | None) -> None:
        super().__init__(f"{who} {how}")
        self.exitcode = exitcode


Start: TypeAlias = Callable[[Sequence[str], int], None]
"""Runs a command in so many processes of each machine until it is done; raises :class:`Lost`."""


def needs_launch(config: Config) -> bool:
    """Whether this process is to start the run's processes, and not one of them."""
    if started_as_rank() or "RANK" in os.environ:
        return False
    return needs_ray(config) or config.trainer.n_gpus_per_node > 1


def needs_ray(config: Config) -> bool:
    """Whether Ray places the processes: on several machines, or where a cluster is named."""
    return config.trainer.nnodes > 1 or config.ray.address is not None


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
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", _PATIENCE_S)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    command = ("-m", "agent_r1", *arguments)
    most = config.trainer.max_restarts
    with nullcontext(start) if start else _starter(config, say) as run:
        for restarts in range(most + 1):
            os.environ[RESTARTS] = str(restarts)
            try:
                return run(command, config.trainer.n_gpus_per_node)
            except Lost as lost:
                if lost.exitcode in FINAL:
                    raise SystemExit(lost.exitcode) from None
                if restarts == most:
                    raise RankError(
                        f"{lost}, and trainer.max_restarts={most} restarts are used up. Its own "
                        "output above says why; the same command continues from the newest "
                        "checkpoint"
                    ) from None
                say(f"{lost}; restart {restarts + 1} of at most {most} from the newest checkpoint")


def _starter(config: Config, say: Callable[[str], None]) -> AbstractContextManager[Start]:
    if needs_ray(config):
        from agent_r1.distributed.ray_start import on_cluster

        return on_cluster(config, say)
    for line in placement(config):
        say(line)
    return nullcontext(on_this_machine)


def restarts_so_far() -> int:
    """How often the processes of this run have been started again."""
    return int(os.environ.get(RESTARTS, "0"))


def on_this_machine(command: Sequence[str], count: int) -> None:
    """A :data:`Start` by torch's elastic launcher."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
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
    try:
        elastic_launch(settings, sys.executable)(*command)
    except SignalException as error:
        raise SystemExit(128 + error.sigval) from None
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        raise Lost(f"rank {rank}", ended(failure.exitcode), failure.exitcode) from None


def ended(exitcode: int) -> str:
    """How a process ended, for a person."""
    if exitcode == HUNG:
        return "waited for the others too long (the stacks above say in what)"
    return f"was killed by signal {-exitcode}" if exitcode < 0 else f"failed with code {exitcode}"
