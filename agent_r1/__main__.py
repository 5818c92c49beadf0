"""``python -m agent_r1`` is the command ``agent-r1``."""

from agent_r1.cli import main

main()
