"""Cold starts from public annotations: what a solver wrote becomes an episode with a real tool."""
