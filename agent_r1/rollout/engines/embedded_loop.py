"""The decode loop of the embedded engine: one thread that owns all of its state."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from agent_r1.errors import EngineError
from agent_r1.rollout.engines.embedded_attention import Chunk, StepBatch
from agent_r1.rollout.engines.embedded_cache import SlotCache
from agent_r1.rollout.engines.embedded_graph import DecodeGraphs
from agent_r1.rollout.engines.embedded_model import Runner
from agent_r1.rollout.engines.embedded_native import Native
from agent_r1.rollout.engines.embedded_report import Counters, EngineStats, Reply
from agent_r1.rollout.engines.embedded_rows import RowArrays
from agent_r1.rollout.engines.embedded_sampler import sample
from agent_r1.rollout.engines.embedded_schedule import (
    Phase,
    Request,
    Schedule,
    Tracked,
    Verdict,
)
from agent_r1.rollout.engines.embedded_slots import PrefixIndex, SlotTable
from agent_r1.rollout.engines.embedded_stop import StopSets
from agent_r1.rollout.prefixes import common_prefix
from agent_r1.types import Completion, Finish

_LOG = logging.getLogger(__name__)
_CLOSED = "the engine is closed; build a new one"
_SHARED_LEAST = 8


class DecodeLoop:
    """Takes commands from any thread and runs the model in a thread of its own."""

    def __init__(
        self,
        runner: Runner,
        cache: SlotCache,
        stops: StopSets,
        schedule: Schedule,
        slots: SlotTable,
        *,
        device: torch.device,
        native: Native | None,
        prefill_chunk: int,
        max_wait_s: float,
        graphs: DecodeGraphs | None = None,
        free_when_idle: bool = True,
    ) -> None:
        self._free_when_idle = free_when_idle
        self._graphs = graphs
        self._runner = runner
        self._cache = cache
        self._stops = stops
        self._schedule = schedule
        self._slots = slots
        self._device = device
        self._native = native
        self._prefill_chunk = prefill_chunk
        self._max_wait_s = max_wait_s
        self._rows = RowArrays()
        self._prefixes = PrefixIndex()
        self._prefilling: list[Tracked] = []
        self._count = Counters()
        self._version = 0
        self._condition = threading.Condition()
        self._commands: deque[Callable[[], None]] = deque()
        self._closing = False
        self._streaming = False
        """A request with a feed was submitted. Training has none and pays nothing for them."""
        self._thread: threading.Thread | None = None

    # Called from any thread.

    def post(self, command: Callable[[], None]) -> None:
        """Have a command run by the loop's thread before its next step."""
        with self._condition:
            if self._closing:
                raise EngineError(_CLOSED)
            self._commands.append(command)
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._run, name="agent-r1-engine", daemon=True
                )
                self._thread.start()
            self._condition.notify()

    def close(self) -> None:
        """Stop after the step in progress; every waiting request fails. Idempotent."""
        with self._condition:
            self._closing = True
            self._condition.notify()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def stats(self) -> EngineStats:
        c = self._count
        return EngineStats(
            generated_tokens=c.generated,
            prefill_tokens=c.prefill,
            reused_tokens=c.reused,
            shared_tokens=c.shared,
            decode_steps=c.decode_steps,
            decode_rows=c.rows,
            steps=c.steps,
            busy_seconds=c.busy,
            wait_seconds=c.wait,
            evictions=self._slots.evictions,
            late_sequences=self._schedule.late,
            policy_version=self._version,
        )

    # Commands, run by the loop's thread.

    def open(self, ids: Sequence[str]) -> None:
        for sequence in self._schedule.open(ids):
            self._interrupt(sequence, "was announced again")
            self._drop(sequence)

    def submit(self, name: str, request: Request) -> None:
        self._streaming = self._streaming or request.feed is not None
        try:
            self._schedule.submit(name, request)
        except EngineError as error:
            request.reply.fail(error)

    def cancel(self, name: str, request: Request) -> None:
        """Free the work of a request unless it is over already."""
        sequence = self._schedule.get(name)
        if sequence is not None and sequence.request is request:
            self._schedule.abandon(sequence)
            self._forget_work(sequence)

    def release(self, name: str) -> None:
        sequence = self._schedule.get(name)
        if sequence is not None:
            self._interrupt(sequence, "was released")
        over = self._schedule.release(name)
        if over is not None:
            self._drop(over)
        self._tidy()

    def _tidy(self) -> None:
        """Give memory back where nobody is left to use it: a trainer's update comes next."""
        if self._schedule.over():
            self._drop_gone()
            if not self._free_when_idle:
                return
            self._slots.clear()
            self._cache.clear()
            if self._graphs is not None:
                self._graphs.clear()

    def _drop_gone(self) -> None:
        for sequence in self._schedule.gone():
            self._drop(sequence)

    def _interrupt(self, sequence: Tracked, what: str) -> None:
        if sequence.request is not None:
            message = f"{sequence.id} {what} while its request was in flight"
            sequence.request.reply.fail(EngineError(message))
            self._schedule.abandon(sequence)

    def load(
        self, bind: Callable[[], None], version: int, keep_cache: bool, reply: Reply[None]
    ) -> None:
        """Serve other weights from the next token on.

        What was computed with the old ones is kept, or computed anew where a completion is
        being sampled and forgotten elsewhere.
        """
        try:
            bind()
            if self._runner.refresh() and self._graphs is not None:
                self._graphs.clear()
        except Exception as error:
            reply.fail(_translated(error))
            return
        self._prefixes.clear()
        self._version = version
        for sequence in self._slots.rows:
            if sequence.phase is Phase.DECODE:
                sequence.mark(int(self._rows.count[sequence.slot]), version)
        if not keep_cache:
            self._recompute()
        reply.set(None)

    def _recompute(self) -> None:
        """Keys and values of what is being sampled, by the weights as they are now."""
        if not any(sequence.working for sequence in self._schedule):
            self._slots.clear()
            return
        chunks: list[Chunk] = []
        for sequence in self._schedule:
            if sequence.phase is Phase.DECODE and sequence.slot is not None:
                row, count = sequence.slot, int(self._rows.count[sequence.slot])
                tokens = [*sequence.tokens, *self._rows.sampled[row, :count].tolist()]
                chunks.append(Chunk(row, 0, tokens[: int(self._rows.position[row])]))
            elif sequence.phase is Phase.PREFILL:
                sequence.computed, sequence.source = 0, None
            else:
                self._slots.free(sequence)
        empty = np.zeros(0, np.int64)
        for chunk in (c for c in chunks if c.token_ids):
            self._runner.forward(
                StepBatch(self._cache, empty, empty, [chunk], self._device, self._native)
            )
            self._count.prefill += len(chunk.token_ids)

    # The thread.

    def _run(self) -> None:
        with torch.inference_mode():
            while self._collect():
                begin = time.perf_counter()
                try:
                    self._advance()
                except Exception as error:
                    self._fail(error)
                self._count.busy += time.perf_counter() - begin
        for command in self._commands:
            self._execute(command)
        self._fail(EngineError(_CLOSED))

    def _collect(self) -> bool:
        """Run commands until there is something to compute; False when closing."""
        blocked_since: float | None = None
        while True:
            with self._condition:
                if self._closing:
                    return False
                commands, self._commands = self._commands, deque()
            for command in commands:
                self._execute(command)
            verdict = self._poll()
            if verdict is Verdict.RUN:
                return True
            now = time.perf_counter()
            timeout = None
            if verdict is Verdict.IDLE:
                blocked_since = None
            else:
                blocked_since = blocked_since or now
                timeout = blocked_since + self._max_wait_s - now
                if timeout <= 0:
                    names = self._schedule.give_up()
                    _LOG.warning(
                        "gave up on %d announced sequences (%s, …) after %.0f s without a "
                        "request or a release; is release() called in a finally block?",
                        len(names),
                        names[0] if names else "none",
                        self._max_wait_s,
                    )
                    continue
            self._sleep(timeout)

    def _execute(self, command: Callable[[], None]) -> None:
        try:
            command()
        except Exception as error:
            self._fail(error)

    def _sleep(self, timeout: float | None) -> None:
        begin, waits = time.perf_counter(), self._schedule.expects()
        with self._condition:
            if not self._commands and not self._closing:
                self._condition.wait(timeout)
        if waits:
            self._count.wait += time.perf_counter() - begin

    def _poll(self) -> Verdict:
        verdict = self._schedule.poll()
        self._drop_gone()
        return verdict

    def _advance(self) -> None:
        """One step: admit, lay out, compute, sample."""
        self._admit()
        self._reserve()
        self._copy_shared()
        self._arrange()
        chunks = self._chunks()
        count = len(self._slots.rows)
        if not count and not chunks:  # every slot is kept for a sequence that is due later
            self._schedule.step += 1
            return
        rows = self._rows
        tokens, logprobs = self._compute(count, chunks)
        if count:
            if not np.isfinite(logprobs).all():
                raise EngineError(
                    "the model produced logits that are not finite; "
                    "look at its weights (a diverged update?) and at its dtype"
                )
            rows.append(tokens, logprobs)
            if self._streaming:
                self._publish(tokens)
            self._finish(count)
        self._account(count, chunks)
        self._schedule.step += 1

    def _compute(
        self, count: int, chunks: Sequence[Chunk]
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Run the model on the first ``count`` rows and the chunks; sample for each row.

        Recorded steps have rows only, so that chunks are computed before and apart.
        """
        rows, graphs = self._rows, self._graphs
        token, position = rows.token[:count], rows.position[:count]
        if graphs is None or chunks:
            shown = 0 if graphs is not None else count
            part = (token[:shown], position[:shown], chunks)
            logits = self._runner.forward(StepBatch(self._cache, *part, self._device, self._native))
        if not count:
            return np.zeros(0, np.int64), np.zeros(0, np.float32)
        if graphs is not None:
            return graphs.step(token, position, rows.sampling(count))
        return sample(logits, rows.sampling(count))

    def _admit(self) -> None:
        ready = self._schedule.ready()
        for sequence in [*(s for s in ready if s.slot is not None), *ready]:
            if sequence.phase is not Phase.QUEUED:
                continue
            if not self._slots.admit(sequence, self._schedule.step):
                return
            self._begin(sequence)

    def _begin(self, sequence: Tracked) -> None:
        """Find out what of the prompt is already there."""
        assert sequence.request is not None
        prompt = sequence.request.prompt
        limit = min(sequence.computed, len(prompt) - 1)
        kept = common_prefix(sequence.tokens, prompt, limit)
        sequence.tokens, sequence.computed = prompt, kept
        sequence.phase = Phase.PREFILL
        sequence.source = None
        found = self._prefixes.find(sequence)
        if found is not None and found[1] >= kept + _SHARED_LEAST:
            sequence.source, sequence.shared = found
        self._prefixes.add(sequence)
        self._count.reused += kept
        self._prefilling.append(sequence)

    def _reserve(self) -> None:
        """Make room for everything that this step can write."""
        rows, count = self._rows, len(self._slots.rows)
        longest = max((len(s.tokens) for s in self._prefilling), default=0)
        sampled = 0
        if count:
            longest = max(longest, int(rows.position[:count].max()) + 1)
            sampled = int(rows.count[:count].max())
        self._cache.reserve(self._slots.size, longest)
        rows.reserve(self._slots.size, sampled + 1)

    def _copy_shared(self) -> None:
        """Copy prefixes whose sources have computed them by now.

        What a source is itself about to be given is copied from where it comes from.
        """
        origins: dict[Tracked, int] = {}
        target: list[int] = []
        length = 0
        for sequence in self._prefilling:
            origin, shared = sequence.source, sequence.shared
            if origin is None:
                continue
            alive = origin.slot is not None and origin.tokens[:shared] == sequence.tokens[:shared]
            if alive and origin.computed < shared and origin.phase is Phase.PREFILL:
                continue
            sequence.source = None
            if not alive or origin.computed < shared:
                continue
            assert origin.slot is not None and sequence.slot is not None
            origins[sequence] = origins.get(origin, origin.slot)
            target.append(sequence.slot)
            length = max(length, shared)
            self._count.shared += shared - sequence.computed
            sequence.computed = shared
        self._cache.copy(list(origins.values()), target, length)

    def _arrange(self) -> None:
        """Rows that ended leave the batch, sequences whose prompt is computed enter it."""
        entrants = [s for s in self._prefilling if s.computed == len(s.tokens) - 1]
        if entrants:
            self._prefilling = [s for s in self._prefilling if s.computed < len(s.tokens) - 1]
        moves = self._slots.arrange(entrants)
        if moves:
            source, target = [old for _, old, _ in moves], [new for _, _, new in moves]
            # A running row has computed more than its prompt; its position says how much.
            running = [old for s, old, _ in moves if s.phase is Phase.DECODE]
            length = max(s.computed for s, _, _ in moves)
            if running:
                length = max(length, int(self._rows.position[running].max()))
            self._cache.copy(source, target, length)
            self._rows.move(source, target)
        for sequence in entrants:
            assert sequence.request is not None
            params = sequence.request.params
            stop_set = self._stops.index(tuple(params.stop), tuple(params.stop_token_ids))
            self._rows.enter(sequence, stop_set)
            sequence.phase = Phase.DECODE
            sequence.versions = [(0, self._version)]

    def _chunks(self) -> list[Chunk]:
        """The pieces of prompts to compute in this step, at most ``prefill_chunk`` tokens."""
        budget = self._prefill_chunk
        chunks: list[Chunk] = []
        for sequence in self._prefilling:
            take = min(len(sequence.tokens) - 1 - sequence.computed, budget)
            if sequence.source is not None or not take:
                continue
            assert sequence.slot is not None
            budget -= take
            start = sequence.computed
            chunks.append(Chunk(sequence.slot, start, sequence.tokens[start : start + take]))
            sequence.computed += take
        return chunks

    def _publish(self, tokens: NDArray[np.int64]) -> None:
        """Tell the rows that are watched what they sampled, before their completion is."""
        for sequence, token in zip(self._slots.rows, tokens.tolist(), strict=False):
            if sequence.request is not None and sequence.request.feed is not None:
                sequence.request.feed.put(token)

    def _finish(self, count: int) -> None:
        """Resolve the rows whose last token ended their completion."""
        rows = self._rows
        suspects = self._stops.candidates[rows.stop_set[:count], rows.token[:count]]
        suspects |= rows.count[:count] >= rows.limit[:count]
        for index in np.flatnonzero(suspects).tolist():
            length = int(rows.count[index])
            tokens = rows.sampled[index, :length]
            end = self._stops.sets[rows.stop_set[index]].check(tokens)
            if end is None and length < rows.limit[index]:
                continue
            finish, stop = end or (Finish.LENGTH, None)
            self._resolve(self._slots.rows[index], index, finish, stop)

    def _resolve(self, sequence: Tracked, row: int, finish: Finish, stop: str | None) -> None:
        rows, request = self._rows, sequence.request
        assert request is not None
        length = int(rows.count[row])
        sampled = tuple(rows.sampled[row, :length].tolist())
        logprobs = tuple(rows.logprobs[row, :length].tolist())
        sequence.tokens = [*sequence.tokens, *sampled]
        sequence.computed = int(rows.position[row])
        self._schedule.turn_over(sequence)
        request.reply.set(Completion(sampled, logprobs, finish, tuple(sequence.versions), stop))

    def _account(self, count: int, chunks: Sequence[Chunk]) -> None:
        self._count.steps += 1
        self._count.prefill += sum(len(c.token_ids) for c in chunks)
        self._count.decode_steps += count > 0
        self._count.rows += count
        self._count.generated += count

    def _forget_work(self, sequence: Tracked) -> None:
        if sequence in self._prefilling:
            self._prefilling.remove(sequence)
        self._prefixes.remove(sequence)
        self._slots.free(sequence)

    def _drop(self, sequence: Tracked) -> None:
        self._forget_work(sequence)
        sequence.tokens = []

    def _fail(self, error: Exception) -> None:
        """Give every waiting request the error and start from an empty cache."""
        for sequence in self._schedule:
            if sequence.request is not None:
                sequence.request.reply.fail(_translated(error))
                self._schedule.abandon(sequence)
        self._prefilling.clear()
        self._prefixes.clear()
        self._slots.clear()
        self._cache.clear()
        self._rows = RowArrays()


def _translated(error: Exception) -> EngineError:
    """A fresh exception for one waiter; sharing one would tangle their tracebacks."""
    if isinstance(error, EngineError):
        return EngineError(str(error))
    failure = EngineError(f"the model failed: {type(error).__name__}: {error}")
    failure.__cause__ = error
    return failure
