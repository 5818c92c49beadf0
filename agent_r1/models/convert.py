"""Other formats of weights, turned into the folder that everything here works on."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import torch

from agent_r1.errors import ModelError
from agent_r1.models.load import save_model, torch_dtype


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
