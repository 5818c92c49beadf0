"""From a published collection, or a user's own table, to clean tasks in verl's schema.

:func:`prepare` and :func:`convert` are the two ways in; ``catalogue`` is the table of what
is known. Every row that does not reach the output is counted and named.
"""

from agent_r1.data.prepare.pipeline import Options, Prepared, convert, prepare

__all__ = ["Options", "Prepared", "convert", "prepare"]
