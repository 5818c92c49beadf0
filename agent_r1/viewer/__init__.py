"""A page that shows trajectories: what the model wrote, how sure it was, what tools answered."""

from agent_r1.viewer.page import PAGE_FILE, Choice, write_page

__all__ = ["PAGE_FILE", "Choice", "write_page"]
