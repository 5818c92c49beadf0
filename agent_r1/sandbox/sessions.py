"""The persistent interpreters of an executor, by name."""

from __future__ import annotations

import threading
from collections import OrderedDict

from agent_r1.sandbox.pool import Slot
from agent_r1.sandbox.steps import Gate


class Session:
    """One name: its slot while the interpreter lives, and a turn for one cell at a time."""

    __slots__ = ("closed", "slot", "turn")

    def __init__(self) -> None:
        self.slot: Slot | None = None
        self.turn = Gate(1)
        self.closed = False

    def end(self) -> None:
        """End the interpreter now, or after the cell that it is running."""
        self.closed = True
        if self.turn.try_enter():
            self.drop()
            self.turn.leave()

    def drop(self) -> None:
        """End the interpreter. Only for who has the turn."""
        slot, self.slot = self.slot, None
        if slot is not None:
            slot.close()


class SessionTable:
    """At most ``limit`` sessions; a further one ends the longest unused."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._sessions: OrderedDict[str, Session] = OrderedDict()

    def get(self, name: str) -> Session:
        """The session called ``name``, new if there is none."""
        with self._lock:
            session = self._sessions.get(name)
            if session is None:
                session = self._sessions[name] = Session()
            self._sessions.move_to_end(name)
            surplus = [
                self._sessions.popitem(last=False)[1]
                for _ in range(len(self._sessions) - self._limit)
            ]
        for old in surplus:
            old.end()
        return session

    def close(self, name: str) -> None:
        """End a session. Unknown names are ignored."""
        with self._lock:
            session = self._sessions.pop(name, None)
        if session is not None:
            session.end()

    def close_all(self) -> None:
        """End every session."""
        with self._lock:
            sessions, self._sessions = list(self._sessions.values()), OrderedDict()
        for session in sessions:
            session.end()
