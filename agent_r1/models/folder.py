"""Whether a path can be that of a model; imports nothing heavy."""

from __future__ import annotations

import os
from pathlib import Path

from agent_r1.errors import ModelError

WEIGHT_PATTERNS = ("*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin")


def is_of_the_hub(path: str | Path) -> bool:
    """Whether this is no folder and may be a Hub name; :class:`ModelError` if it is neither."""
    folder = Path(path)
    if folder.exists():
        return False
    if folder.is_absolute() or os.fspath(path).startswith(".") or len(folder.parts) != 2:
        raise ModelError(f"model folder {folder} does not exist; check the path")
    return True


def check_folder(path: str | Path) -> None:
    """Raise :class:`ModelError` if ``path`` looks like a folder but is no model folder.

    A Hub name such as ``owner/model`` passes: whether it exists only the Hub can say.
    """
    folder = Path(path)
    if is_of_the_hub(path):
        return
    if not folder.is_dir():
        raise ModelError(f"{folder} is a file; give the folder that holds config.json")
    if not (folder / "config.json").exists():
        raise ModelError(
            f"{folder} has no config.json and is no Hugging Face model folder; "
            "give the folder that model.save_pretrained wrote"
        )
    if not any(any(folder.glob(pattern)) for pattern in WEIGHT_PATTERNS):
        raise ModelError(
            f"{folder} has a config.json but no weights ({', '.join(WEIGHT_PATTERNS)}); "
            "the download or the save was not finished"
        )
