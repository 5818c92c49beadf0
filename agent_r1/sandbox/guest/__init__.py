"""The code that runs inside the sandbox.

Everything here is executed by a *clean* interpreter that imports the standard library
only: neither the host's packages nor the rest of this project are reachable from it.
``supervisor`` builds the root and the namespaces, ``zygote`` imports what programs want
and forks slots, ``init`` is process 1 of a slot, ``program`` is what a forked child does
before, while and after the user's code runs.
"""
