"""Model folders in the Hugging Face layout: read, check, write.

Everything that can be wrong with a folder is a :class:`ModelError` that names the file
and the remedy, before any weight is read where that is possible.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from agent_r1.errors import CheckpointError, ModelError
from agent_r1.models.attention import PACKED, register_attention
from agent_r1.models.folder import check_folder, is_of_the_hub
from agent_r1.models.fused import fuse_elementwise
from agent_r1.models.logprobs import packed_states, token_logprobs
from agent_r1.models.lora import describe_adapter, has_lora, merged_state, save_adapter
from agent_r1.models.recompute import recompute_elementwise
from agent_r1.models.weights import state_with

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "tekken.json")
PACKABLE_LAYERS = {"full_attention", "sliding_attention"}


def load_model(
    path: str | Path,
    dtype: torch.dtype | str = torch.float32,
    device: torch.device | str = "cpu",
    *,
    attn: str = "packed",
    trust_remote_code: bool = False,
    gradient_checkpointing: bool = False,
) -> nn.Module:
    """A causal language model from a folder (or a Hub name), in evaluation mode.

    ``attn`` is ``packed`` (ours, needed by :func:`token_logprobs`) or any name that
    transformers knows. Dropout, where a config has any, is off in evaluation mode, and
    stays off: on-policy log-probabilities must be those that the engine sampled with.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    check_folder(path)
    name = register_attention() if attn == "packed" else attn
    try:
        with _without_progress_bars(path):
            model: nn.Module = AutoModelForCausalLM.from_pretrained(
                os.fspath(path),
                dtype=torch_dtype(dtype),
                attn_implementation=name,
                trust_remote_code=trust_remote_code,
            )
    except (OSError, ValueError, ImportError, RuntimeError, KeyError, SafetensorError) as error:
        raise ModelError(f"cannot load a causal language model from {path}: {error}") from error
    model = model.to(device).eval()
    if attn == "packed":
        enable_packing(model)
    prepare_training(model, gradient_checkpointing=gradient_checkpointing)
    return model


def prepare_training(model: nn.Module, *, gradient_checkpointing: bool = False) -> None:
    """What makes updates faster and smaller without changing what the model computes."""
    weight = next(model.parameters())
    if weight.is_cuda and weight.dtype in (torch.bfloat16, torch.float16):
        fuse_elementwise(model)
    if gradient_checkpointing:
        enable_gradient_checkpointing(model)
    else:
        recompute_elementwise(model)


def load_tokenizer(path: str | Path, *, trust_remote_code: bool = False) -> Any:
    """The tokenizer of a model folder. A missing padding token is not an error: nothing
    here reads meaning from it, so the end-of-sequence token is taken in its place.
    """
    from transformers import AutoTokenizer

    folder = Path(path)
    if not is_of_the_hub(path) and not any((folder / name).exists() for name in TOKENIZER_FILES):
        raise ModelError(
            f"{folder} holds no tokenizer (none of {', '.join(TOKENIZER_FILES)}); copy the "
            "tokenizer files of the base model there, or save one with tokenizer.save_pretrained"
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            os.fspath(path), trust_remote_code=trust_remote_code
        )
    except (OSError, ValueError, ImportError, KeyError, TypeError) as error:
        raise ModelError(f"cannot load a tokenizer from {path}: {error}") from error
    if tokenizer.eos_token_id is None:
        raise ModelError(
            f"the tokenizer of {path} has no end-of-sequence token; set eos_token in its "
            "tokenizer_config.json, otherwise no completion could ever end"
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


@contextmanager
def visiting(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Have a frozen ``model`` on ``device`` while the context lasts.

    Its tensors at home stay where they are, so that coming back copies nothing.
    """
    tensors = [*model.parameters(), *model.buffers()]
    homes = [tensor.data for tensor in tensors]
    for tensor in tensors:
        tensor.data = tensor.data.to(device, non_blocking=True)
    try:
        yield
    finally:
        for tensor, home in zip(tensors, homes, strict=True):
            tensor.data = home


def check_vocabulary(model: nn.Module, tokenizer: Any) -> None:
    """Raise :class:`ModelError` if the tokenizer can produce ids that the model lacks."""
    rows = int(model.get_input_embeddings().weight.shape[0])  # type: ignore[operator]
    largest = max(tokenizer.get_vocab().values())
    if largest >= rows:
        raise ModelError(
            f"the tokenizer has token ids up to {largest} but the model only {rows} embeddings; "
            "take the tokenizer that belongs to the model, or call "
            f"model.resize_token_embeddings({largest + 1}) and save the model again"
        )


def torch_dtype(dtype: torch.dtype | str) -> torch.dtype:
    """A dtype from its name in a configuration."""
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype not in DTYPES:
        raise ModelError(f"unknown dtype {dtype!r}; use one of {', '.join(DTYPES)}")
    return DTYPES[dtype]


def enable_gradient_checkpointing(model: nn.Module) -> None:
    """Recompute layers in the backward pass instead of keeping what they computed.

    It acts in training mode only, which the worker enters for updates.
    """
    name = "activation_checkpointing_enable"  # before transformers 5.23: the older one
    enable: Any = getattr(model, name, None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})


def enable_packing(model: nn.Module) -> None:
    """Switch a transformers model to packed attention and prove that it computes the same.

    Two short rows are run packed and the ordinary way. An architecture whose state leaks
    from row to row (recurrent layers), that masks in a way packing does not know, or that
    scales its logits in an unknown way, differs and is refused with :class:`ModelError`.
    """
    config: Any = model.config
    name = type(model).__name__
    strange = set(getattr(config, "layer_types", None) or ()) - PACKABLE_LAYERS
    if strange:
        raise ModelError(
            f"{name} has layers of type {', '.join(sorted(strange))}, which cannot be packed; "
            "use a model with full or sliding-window attention"
        )
    try:
        model.set_attn_implementation(register_attention())  # type: ignore[operator]
    except (ValueError, AttributeError) as error:
        raise ModelError(f"{name} does not let its attention be chosen: {error}") from error
    if config._attn_implementation != PACKED:
        raise ModelError(f"{name} ignores the choice of attention and cannot be packed")
    # torch drops the gradient of an embedding's padding row, which may be a real token.
    model.get_input_embeddings().padding_idx = None  # type: ignore[operator]
    if next(model.parameters()).device.type != "meta":
        _check_windows(model)
        _check_packing(model)


@torch.no_grad()
def _check_windows(model: nn.Module) -> None:
    """Every layer that the config calls sliding must tell its window to the attention.

    A model that puts the window into its mask only would attend too far, and only in rows
    longer than the window, where no cheap comparison could show it.
    """
    config: Any = model.config
    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        windowed = getattr(config, "sliding_window", None) is not None
        kinds = ["sliding_attention"] * (config.num_hidden_layers if windowed else 0)
    windows: list[int | None] = []
    ids = torch.zeros((1, 2), dtype=torch.int64, device=next(model.parameters()).device)
    packed_states(model, ids, ids.new_tensor([2]), probe=windows)
    told = sum(window is not None for window in windows)
    if told != list(kinds).count("sliding_attention"):
        raise ModelError(
            f"{type(model).__name__} has {list(kinds).count('sliding_attention')} sliding-window "
            f"layers but {told} of them state their window; packed attention would be wrong"
        )


@torch.no_grad()
def _check_packing(model: nn.Module) -> None:
    vocabulary = int(model.get_input_embeddings().weight.shape[0])  # type: ignore[operator]
    device = next(model.parameters()).device
    lengths = torch.tensor([7, 5], device=device)
    ids = (torch.arange(14, device=device).view(2, 7) * 7 + 3) % vocabulary
    packed = token_logprobs(model, ids, lengths).logprobs
    worst = 0.0
    for row, length in enumerate(lengths.tolist()):
        logits = model(input_ids=ids[row : row + 1, :length], use_cache=False).logits[0, :-1]
        expected = logits.to(packed.dtype).log_softmax(-1)
        expected = expected.gather(1, ids[row, 1:length, None]).squeeze(1)
        worst = max(worst, float((packed[row, 1:length] - expected).abs().max()))
    limit = 1e-3 if next(model.parameters()).dtype in (torch.float32, torch.float64) else 0.25
    if not worst <= limit:
        raise ModelError(
            f"{type(model).__name__} gives other log-probabilities when rows are packed (off by "
            f"{worst:.2g}); this architecture is not supported for training yet"
        )


def save_model(
    model: nn.Module,
    tokenizer: Any | None,
    path: str | Path,
    values: Mapping[str, Tensor] | None = None,
) -> Path:
    """Write a model folder that is either complete or absent.

    ``values`` take the place of the model's own parameters of these names, in their types.

    All files go to a folder beside ``path``, are flushed to the disk and take its place
    by renaming; an existing folder is replaced only then. Raises
    :class:`CheckpointError` if the disk does not take it, and leaves nothing behind.
    """
    target = Path(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    except OSError as error:
        raise CheckpointError(f"cannot write to {target.parent}: {error}") from error
    try:
        with _without_progress_bars(work):
            state = None if values is None else state_with(model, values)
            if has_lora(model):
                model.save_pretrained(work, state_dict=merged_state(model, state))  # type: ignore[operator]
                base = str(model.config._name_or_path)  # type: ignore[union-attr]
                save_adapter(model, work / "adapter", base, state)
            else:
                model.save_pretrained(work, state_dict=state)  # type: ignore[operator]
        if tokenizer is not None:
            tokenizer.save_pretrained(work)
        flush_folder(work)
        _replace(work, target)
    except Exception as error:  # safetensors reports a full disk with a type of its own
        raise CheckpointError(
            f"the model could not be saved to {target} ({error}); free some disk space and "
            "try again. What was there before is untouched"
        ) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return target


def describe_model(model: nn.Module, tokenizer: Any | None, folder: Path) -> None:
    """Write all of a model folder but its weights."""
    folder.mkdir(parents=True, exist_ok=True)
    parts: tuple[Any, ...] = (model.config, getattr(model, "generation_config", None), tokenizer)
    for part in parts:
        if part is not None:
            part.save_pretrained(folder)
    if has_lora(model):
        describe_adapter(model, folder, str(parts[0]._name_or_path))


@contextmanager
def _without_progress_bars(path: str | Path) -> Iterator[None]:
    """Reading and writing local files is quick, and bars would cut through a run's own view."""
    from transformers.utils import logging

    if not Path(path).is_dir() or not logging.is_progress_bar_enabled():
        yield
        return
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.enable_progress_bar()


def flush_folder(folder: Path) -> None:
    """Force everything below a folder to the disk, and the folder itself."""
    for file in [*folder.rglob("*"), folder]:
        handle = os.open(file, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _replace(work: Path, target: Path) -> None:
    work.chmod(0o755)  # mkdtemp makes it private
    if not target.exists():
        work.rename(target)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{target.name}-old-", dir=target.parent)) / "old"
    target.rename(old)
    work.rename(target)
    shutil.rmtree(old.parent, ignore_errors=True)
