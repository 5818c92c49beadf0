"""The index of a run's trajectories, which finds one of a million in milliseconds.

The index is derived from what the run wrote and may be deleted at any time.
"""

from agent_r1.monitor.index.build import INDEX_FILE, IndexFile
from agent_r1.monitor.index.facts import FACTS, Described, describe

__all__ = ["FACTS", "INDEX_FILE", "Described", "IndexFile", "describe"]
