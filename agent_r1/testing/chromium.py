"""A Chromium without a window, for tests, measurements and pictures of the web application."""

from __future__ import annotations

import os
import shutil
from typing import Any

from agent_r1.errors import ConfigError

FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


def chromium_program() -> str | None:
    """The program that ``CHROMIUM`` names, else the one on the path; None: there is none."""
    return os.environ.get("CHROMIUM") or shutil.which("chromium")


def launch_chromium(playwright: Any) -> Any:
    """A new browser: ``playwright`` is what ``sync_playwright()`` gives, the answer its Browser.

    Raises:
        ConfigError: there is no Chromium.
    """
    program = chromium_program()
    if program is None:
        raise ConfigError("no Chromium: apt-get install chromium, or set CHROMIUM to its path")
    return playwright.chromium.launch(executable_path=program, args=list(FLAGS))
