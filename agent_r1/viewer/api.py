"""What the page asks the server for: JSON over ``GET``, nothing that writes.

Errors are ``{"error": sentence}`` with status 404 (no such run or trajectory) or 400.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import fields
from statistics import fmean, pstdev
from typing import Any
from weakref import WeakValueDictionary

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from agent_r1.errors import AgentR1Error, ConfigError, DataError
from agent_r1.monitor.compare import seed_groups
from agent_r1.monitor.names import meaning
from agent_r1.monitor.query import Query, Row, as_json
from agent_r1.viewer.catalog import Catalog
from agent_r1.viewer.copying import copied
from agent_r1.viewer.run_view import RunView, flat
from agent_r1.viewer.series import finite, series, wilson
from agent_r1.viewer.shown import question_of, shown, tokens_of
from agent_r1.viewer.spelling import SpellingOf

MOST_ROWS = 500
_GROUP_ROWS = 4096
_QUESTIONS = 64
"""Groups whose question is read from the record; the others show their task's name."""
_NOBODY_WAITS = 499
"""Status of an answer that is sent to nobody: the client has closed its connection."""
Handler = Callable[[Request], Any]


class Api:
    """The handlers, each a method of one address below ``/api``. Starlette runs them in threads."""

    def __init__(self, catalog: Catalog, spellings: Callable[[RunView], SpellingOf]) -> None:
        self._catalog = catalog
        self._spellings = spellings

    def routes(self) -> list[Route]:
        handlers: dict[str, Handler] = {
            "pulse": self.pulse,
            "runs": self.runs,
            "run": self.run,
            "metrics": self.metrics,
            "meanings": self.meanings,
            "trajectory": self.trajectory,
            "tokens": self.tokens,
            "around": self.around,
            "steps": self.steps,
            "step": self.step,
            "interval": self.interval,
        }
        made = [Route(f"/api/{name}", _answering(handler)) for name, handler in handlers.items()]
        searches = Route("/api/trajectories", _in_turn(self.trajectories))
        return [*made, searches, Route("/api/copy", self.copy)]

    def pulse(self, request: Request) -> Any:
        """A mark for each run that changes when the run has written something."""
        return pulse_of(self._catalog.runs())

    def runs(self, request: Request) -> Any:
        """The table of runs, with the settings in which they differ and groups of seeds.

        ``pulse`` is that of before the runs were read, so that nothing written since is missed.
        """
        runs = self._catalog.runs()
        pulse = pulse_of(runs)
        settings = {run.path: run.comparable() for run in runs}
        groups = seed_groups([run.path for run in runs], settings)
        group_of = {path: label for label, paths in groups.items() for path in paths}
        return {
            "runs": [
                {**run.summary(), "names": run.names(), "group": group_of[run.path]} for run in runs
            ],
            "differing": differing({run.key: flat(settings[run.path] or {}) for run in runs}),
            "pulse": pulse,
        }

    def run(self, request: Request) -> Any:
        run = self._run(request)
        return {
            "summary": run.summary(),
            "names": run.names(),
            "settings": run.settings(),
            "record": run.record(),
            "results": run.results(),
        }

    def metrics(self, request: Request) -> Any:
        """``run`` and ``name``, both repeatable, give ``{run: {name: points}}``."""
        names = request.query_params.getlist("name")
        found = {}
        for key in request.query_params.getlist("run"):
            lines = self._catalog.run(key).metrics()
            found[key] = {name: series(lines, name) for name in names}
        return found

    def meanings(self, request: Request) -> Any:
        """``name``, repeatable, gives ``{name: sentence}`` of the metrics that have one."""
        names = request.query_params.getlist("name")
        return {name: found for name in names if (found := meaning(name))}

    def trajectories(self, request: Request) -> Any:
        """A page of rows, and how many there are of each source and environment."""
        index = self._run(request).index()
        query = query_of(request.query_params)
        page = index.page(query)
        every = Query()
        return {
            "total": page.total,
            "pending": index.pending,
            "rows": [as_json(row) for row in page.rows],
            "counts": {field: index.counts(field, every) for field in ("source", "environment")},
        }

    def trajectory(self, request: Request) -> Any:
        run, key = self._run(request), request.query_params.get("key", "")
        siblings = [as_json(row) for row in run.index().siblings(key)]
        record, seen = run.trajectory(key)
        spelling = self._spellings(run).get()
        found = shown(record, seen, spelling is not None)
        return found | {"key": key, "siblings": siblings}

    def tokens(self, request: Request) -> Any:
        """The first ``end`` tokens of a ``turn``, counted from 0, of a trajectory."""
        asked, run = request.query_params, self._run(request)
        record, seen = run.trajectory(asked.get("key", ""))
        turn, end = _integer(asked, "turn"), _integer(asked, "end")
        if not (0 <= turn < len(record["turns"]) and end >= 0):
            raise DataError(f"the trajectory has {len(record['turns'])} turns, and no turn {turn}")
        spelling = self._spellings(run).get()
        if spelling is None:
            raise DataError("no tokenizer of this run was found; start with --tokenizer MODEL")
        return tokens_of(record, turn, end, seen, spelling)

    def around(self, request: Request) -> Any:
        """The keys before and after one, in the order of a search."""
        asked = request.query_params
        before, after = self._run(request).index().around(asked.get("key", ""), query_of(asked))
        return {"before": before, "next": after}

    def steps(self, request: Request) -> Any:
        index = self._run(request).index()
        found = {split: [as_json(s) for s in index.steps(split)] for split in ("train", "val")}
        return found | {"pending": index.pending}

    def step(self, request: Request) -> Any:
        """Every trajectory of a step as rows by group, the groups with most spread first."""
        asked = request.query_params
        step = _integer(asked, "step")
        split = asked.get("split") or "train"
        query = Query(
            split=split, step_from=step, step_to=step, descending=False, limit=_GROUP_ROWS
        )
        run = self._run(request)
        page = run.index().page(query)
        lines = [line for line in run.metrics() if line.get("step") == step]
        groups = groups_of(page.rows)
        for group in groups[:_QUESTIONS]:
            group["question"] = question_of(run.index().trajectory(group["rows"][0]["key"]))
        return {
            "total": page.total,
            "groups": groups,
            "metrics": lines[-1] if lines else {},
        }

    def interval(self, request: Request) -> Any:
        """``run``, repeatable, and ``name``: ``runs`` by key, see :func:`interval_of`."""
        asked = request.query_params
        runs = [self._catalog.run(key) for key in asked.getlist("run")]
        return {
            "runs": {run.key: interval_of(run, asked.get("name", "")) for run in runs},
            "pending": sum(run.index().pending for run in runs if run.has_trajectories),
        }

    def copy(self, request: Request) -> Response:
        """``form`` is markdown, trace or test."""
        asked = request.query_params
        try:
            record = self._run(request).index().trajectory(asked.get("key", ""))
            return PlainTextResponse(copied(record, asked.get("form", "markdown")))
        except AgentR1Error as error:
            return PlainTextResponse(str(error), 404)

    def _run(self, request: Request) -> RunView:
        return self._catalog.run(request.query_params.get("run", ""))


def _answering(handler: Handler) -> Callable[[Request], Response]:
    def answer(request: Request) -> Response:
        try:
            return _json(handler(request))
        except DataError as error:
            return _json({"error": str(error)}, 404)
        except AgentR1Error as error:
            return _json({"error": str(error)}, 400)

    return answer


def _in_turn(handler: Handler) -> Callable[[Request], Awaitable[Response]]:
    """Like :func:`_answering`, but the questions about a run are answered one after the other.

    They would wait for its index anyway. A page that asks while its reader types closes the
    connection of what it asked before; such a question, when its turn comes, is left out.
    """
    answer = _answering(handler)
    turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def wait(request: Request) -> Response:
        async with turns.setdefault(request.query_params.get("run", ""), asyncio.Lock()):
            if await request.is_disconnected():
                return Response(status_code=_NOBODY_WAITS)
            return await run_in_threadpool(answer, request)

    return wait


def _json(value: Any, status: int = 200) -> Response:
    text = json.dumps(finite(value), ensure_ascii=True, allow_nan=False, default=str)
    return Response(text, status, media_type="application/json")


def pulse_of(runs: Sequence[RunView]) -> dict[str, str]:
    """``{key: mark}``, see :meth:`RunView.mark`."""
    return {run.key: run.mark() for run in runs}


def interval_of(run: RunView, name: str) -> dict[str, list[float]]:
    """The 95 % interval of a validated share at each step that has stored trajectories.

    ``val-core/<source>/<part>/mean@<n>`` is measured on as many tasks as the source has
    trajectories of the step, divided by ``n``.
    """
    found: dict[str, list[float]] = {"steps": [], "low": [], "high": []}
    parts = re.fullmatch(r"val-core/(.+)/[^/]+/mean@(\d+)", name)
    if parts is None or not run.has_trajectories:
        return found
    counts = run.index().step_counts(Query(split="val", source=parts[1]))
    for line in run.metrics():
        share, step = line.get(name, -1.0), int(line["step"])
        if 0 <= share <= 1 and (tasks := counts.get(step, 0) // int(parts[2])):
            for edge, value in zip(found, (float(step), *wilson(share, tasks)), strict=True):
                found[edge].append(value)
    return found


def query_of(asked: Mapping[str, str]) -> Query:
    """A :class:`Query` from the text of an address; what it does not name is not asked.

    Raises:
        ConfigError: a number or a truth that cannot be read.
    """
    kinds = {field.name: str(field.type) for field in fields(Query)}
    given: dict[str, Any] = {}
    for name, text in asked.items():
        kind = kinds.get(name)
        if kind is None or text == "":
            continue
        given[name] = _read(name, kind, text)
    given["limit"] = min(given.get("limit", 100), MOST_ROWS)
    return Query(**given)


def _read(name: str, kind: str, text: str) -> Any:
    try:
        if "bool" in kind:
            return {"true": True, "false": False}[text]
        if "int" in kind:
            return int(text)
        return float(text) if "float" in kind else text
    except (KeyError, ValueError) as error:
        raise ConfigError(f"{name}={text!r} cannot be read as {kind}") from error


def _integer(asked: Mapping[str, str], name: str) -> int:
    value: int = _read(name, "int", asked.get(name, ""))
    return value


def differing(settings: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Settings that have several values among the runs that know them: ``{key: {run: value}}``."""
    different = {}
    for name in sorted({name for found in settings.values() for name in found}):
        values = {run: found[name] for run, found in settings.items() if name in found}
        if len({json.dumps(value, sort_keys=True, default=str) for value in values.values()}) > 1:
            different[name] = values
    return different


def groups_of(rows: tuple[Row, ...]) -> list[dict[str, Any]]:
    """Siblings together, sorted by the spread of their rewards, then by their mean."""
    found: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        found[row.group].append(row)
    groups = []
    for name, members in found.items():
        rewards = [row.reward for row in members if row.reward is not None]
        groups.append(
            {
                "group": name,
                "task": members[0].task,
                "mean": fmean(rewards) if rewards else None,
                "spread": pstdev(rewards) if rewards else None,
                "rows": [as_json(row) for row in members],
            }
        )
    return sorted(groups, key=lambda g: (-(g["spread"] or 0.0), g["mean"] or 0.0, g["group"]))
