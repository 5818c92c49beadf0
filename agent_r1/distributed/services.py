"""What runs beside the ranks: sandboxes on every node, engines on GPUs of their own.

A service has one address for the whole run. When its process ends it is started again there;
its clients ask others meanwhile and take it back.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from agent_r1.config.policy import VLLMConfig
from agent_r1.config.schema import Config
from agent_r1.distributed.actors import actor_in, actor_on, end_all, environment
from agent_r1.distributed.cluster import Node, living_nodes, require_ray
from agent_r1.distributed.launch import Lost, ended
from agent_r1.distributed.process import Report
from agent_r1.errors import ClusterError

_POLL_S: Final = 1.0
_FIRST_ANSWER_S: Final = 60.0
_FIRST_PAUSE_S: Final = 0.5
_LONGEST_PAUSE_S: Final = 30.0
_STEADY_S: Final = 60.0
"""A service that served so long begins with short pauses again."""
_STARTS: Final = 3
"""Of an essential service, in a row, none of which it survived until it served."""
_KNOCK_S: Final = 0.2
_LAST: Final = 3
"""Lines of its output with which the end of a process is told."""
_KEPT: Final = 1000
"""Lines of output that wait for the folder of the log to be made."""

MakeActor = Callable[[str], Any]
"""An actor for a service whose node has this id."""
Command = Callable[[str, int], Sequence[str]]
"""What serves at this host and port."""


class Service:
    """A process with an address on one node of the cluster.

    ``essential``: the run cannot do without it where its node is lost, since no other node has
    its address, nor where it never comes to serve. ``log``: where its output is written, as soon
    as that file's folder exists.
    """

    def __init__(
        self,
        name: str,
        takes: str,
        make: MakeActor,
        command: Command,
        *,
        node_id: str = "",
        environ: Mapping[str, str] | None = None,
        essential: bool = False,
        log: Path | None = None,
        say: Callable[[str], None] = print,
    ) -> None:
        self.name, self.takes = name, takes
        self._make, self._environ = make, dict(environ or {})
        self._essential, self._log, self._say = essential, log, say
        self._actor = make(node_id)
        host, port, _ = self._first_answer("place")
        _, self._node_id = self._first_answer("where")
        (self.node,) = (node for node in living_nodes() if node.id == self._node_id)
        bracketed = f"[{host}]" if ":" in host else host
        self.url = f"http://{bracketed}:{port}"
        self._address = (host, port)
        self._command = tuple(command(host, port))
        self._output: deque[str] = deque(maxlen=_KEPT)
        self._last: deque[str] = deque(maxlen=_LAST)
        self._served, self._failures = False, 0
        self._polled: Any = None
        self._started = self._again_at = 0.0
        self._pause_s = _FIRST_PAUSE_S

    def _first_answer(self, method: str) -> Any:
        ray = require_ray()
        try:
            return ray.get(getattr(self._actor, method).remote(), timeout=_FIRST_ANSWER_S)
        except ray.exceptions.RayError as error:
            raise Lost(self.name, f"could not be placed ({type(error).__name__})", None) from None

    def start(self) -> None:
        """Start the process; returns at once."""
        self._started, self._served = time.monotonic(), False
        self._last.clear()
        environ = environment() | self._environ
        self._actor.start.remote(self._command, environ, os.getcwd(), whole_group=True)
        self._polled = self._actor.poll.remote(_POLL_S)

    def look_after(self) -> None:
        """Start the process again if it has ended. Never waits.

        Raises :class:`Lost` where an essential one lost its node, :class:`ClusterError` where it
        ended too often before it served.
        """
        if self._polled is None:
            if time.monotonic() >= self._again_at:
                self._start_again()
            return
        ray = require_ray()
        ready, _ = ray.wait([self._polled], timeout=0)
        if not ready:
            return
        try:
            report: Report = ray.get(self._polled)
        except ray.exceptions.RayError:
            self._schedule("was lost with its machine or supervisor")
            return
        self._keep(report.lines)
        if report.exitcode is None:
            self._served = self._served or self._answers()
            self._polled = self._actor.poll.remote(_POLL_S)
        else:
            self._schedule(f"{ended(report.exitcode)}: {' '.join(self._last)}")

    def _keep(self, lines: Sequence[str]) -> None:
        self._last.extend(lines)
        if self._log is None:
            return
        self._output += [f"{line}\n" for line in lines]
        if self._log.parent.is_dir():
            with suppress(OSError), self._log.open("a") as file:
                file.writelines(self._output)
                self._output.clear()

    def _answers(self) -> bool:
        with suppress(OSError), socket.create_connection(self._address, timeout=_KNOCK_S):
            return True
        return False

    def _schedule(self, how: str) -> None:
        if self._essential and self._home() is None:
            raise Lost(self.name, how, None)
        self._failures = 0 if self._served else self._failures + 1
        if self._essential and self._failures == _STARTS:
            kept = f". Its output is in {self._log}" if self._log and self._log.exists() else ""
            raise ClusterError(
                f"{self.name} on {self.node.name} was started {_STARTS} times and never served; "
                f"the last time it {how.rstrip(': ')}{kept}"
            )
        if time.monotonic() - self._started > _STEADY_S:
            self._pause_s = _FIRST_PAUSE_S
        self._say(f"{self.name} on {self.node.name} {how.rstrip(': ')}; it is started again")
        self._polled = None
        self._again_at = time.monotonic() + self._pause_s
        self._pause_s = min(_LONGEST_PAUSE_S, 2 * self._pause_s)

    def _start_again(self) -> None:
        home = self._home()
        if home is None:  # clients do without it; a machine that comes back has a new number
            self._again_at = time.monotonic() + _LONGEST_PAUSE_S / 6
            return
        end_all([self._actor])
        self._node_id = home.id
        self._actor = self._make(home.id)
        self.start()

    def _home(self) -> Node | None:
        """Its node; or one that came back with the same address."""
        nodes = living_nodes()
        same = [node for node in nodes if node.id == self._node_id]
        alone = [node for node in nodes if node.address == self.node.address]
        return next(iter(same or (alone if len(alone) == 1 else [])), None)

    def end(self) -> None:
        end_all([self._actor])


def sandboxes_of(config: Config, say: Callable[[str], None]) -> list[Service]:
    """A sandbox service on every node of the cluster, with ``sandbox.executor=ray``."""
    if config.sandbox.executor != "ray":
        return []
    sandbox = config.sandbox
    settings = [f"sandbox.isolation={sandbox.isolation}", f"sandbox.token_env={sandbox.token_env}"]
    if sandbox.workers is not None:
        settings.append(f"sandbox.workers={sandbox.workers}")

    def command(host: str, port: int) -> Sequence[str]:
        serve = (sys.executable, "-m", "agent_r1", "sandbox", "serve")
        return [*serve, "--host", host, "--port", str(port), *settings]

    token = {sandbox.token_env: os.environ[sandbox.token_env]}
    return [
        Service(
            "sandbox",
            "no reserved CPUs",
            actor_on,
            command,
            node_id=node.id,
            environ=token,
            say=say,
        )
        for node in living_nodes()
    ]


def engines_of(
    config: Config, device: str, group: Any, say: Callable[[str], None]
) -> list[Service]:
    """A vLLM server in every bundle of ``group``, with ``trainer.layout=apart``."""
    if group is None:
        return []
    from agent_r1.rollout.engines.vllm_open import command as vllm_command

    model, rollout = config.actor_rollout_ref.model, config.actor_rollout_ref.rollout
    dtype = model.dtype_on(device) if rollout.dtype == "auto" else rollout.dtype
    words = vllm_command(rollout, Path(model.path), config.context_window, dtype, device)
    cards = rollout.vllm.tensor_parallel_size if device == "cuda" else 0

    def command(host: str, port: int) -> Sequence[str]:
        return [*words, "--host", host, "--port", str(port)]

    def place(bundle: int) -> MakeActor:
        return lambda _: actor_in(group, bundle, cores=1, cards=cards)

    return [
        Service(
            f"engine {number}",
            f"{cards} GPUs, 1 CPU" if cards else "1 CPU",
            place(number),
            command,
            environ=engine_environment(rollout.vllm, device),
            essential=True,
            log=config.trainer.run_dir / f"vllm-{number}.log",
            say=say,
        )
        for number in range(rollout.vllm.replicas)
    ]


def engine_environment(settings: VLLMConfig, device: str) -> Mapping[str, str]:
    """What an engine's environment has beyond that of its node and of the run's processes."""
    from agent_r1.rollout.engines.vllm_open import environment as vllm_environment

    whole = vllm_environment(settings, device)
    added = {name: whole[name] for name in whole if name not in os.environ} | settings.env
    if settings.python is not None:
        added.setdefault("PYTHONPATH", "")  # it leads to packages of another interpreter
    return added
