"""What a run did, to look at: a web application, and one page as a file.

Importing the package imports neither; ``server`` needs Starlette and uvicorn.
"""

from agent_r1.viewer.page import Choice, write_page

__all__ = ["Choice", "write_page"]
