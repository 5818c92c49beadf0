"""What vLLM loads in its own processes: a weight transport by way of files.

vLLM's transports need GPUs. This one carries tensors in a safetensors file, best in memory
(``/dev/shm``), and works wherever trainer and engine see the same file system, CPUs among
them. It is registered by the entry point group ``vllm.general_plugins``, so agent_r1 must be
installed in the environment that vLLM runs in.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

TRANSPORT = "agent_r1_file"


def register() -> None:
    """Called by vLLM in every process that it starts; may be called again."""
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

    if TRANSPORT not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(TRANSPORT, __name__, "FileTransport")


@dataclass
class FileInit:
    """Nothing has to be agreed on."""


@dataclass
class FileUpdate:
    """One safetensors file with tensors as a model folder of Hugging Face has them.

    With ``base`` that one has, and ``path`` has ``NAME.a`` and ``NAME.b`` of its adapters.
    """

    path: str
    base: str | None = None

    def tensors(self, device: str) -> Iterator[tuple[str, Tensor]]:
        """Whole weights, one at a time."""
        from safetensors import safe_open

        with safe_open(self.path, framework="pt", device=device) as file:
            if self.base is None:
                for name in file.keys():  # noqa: SIM118
                    yield name, file.get_tensor(name)
                return
            scales = json.loads(file.metadata()["scales"])
            with safe_open(self.base, framework="pt", device=device) as base:
                for name in base.keys():  # noqa: SIM118
                    yield name, _adapted(name, base.get_tensor(name), file, scales)


def _adapted(name: str, weight: Tensor, file: Any, scales: dict[str, float]) -> Tensor:
    from agent_r1.models.lora import Adapter

    if name not in scales:
        return weight
    a, b = file.get_tensor(f"{name}.a"), file.get_tensor(f"{name}.b")
    return Adapter(a, b, scales[name]).merged(weight)


def __getattr__(name: str) -> Any:
    """The class is made when vLLM asks for it, as its base is vLLM's."""
    if name != "FileTransport":
        raise AttributeError(name)
    return _make()


def _make() -> Any:
    from vllm.distributed.weight_transfer.base import WeightTransferEngine
    from vllm.model_executor.model_loader.reload import (
        finalize_layerwise_reload,
        initialize_layerwise_reload,
    )

    class FileTransport(WeightTransferEngine):  # type: ignore[misc]
        """The receiving side."""

        init_info_cls = FileInit
        update_info_cls = FileUpdate

        def init_transfer_engine(self, init_info: FileInit) -> None:
            """There is no connection to open."""

        def start_weight_update(self) -> None:
            initialize_layerwise_reload(self.model)

        def update_weights(self, update_info: dict[str, Any]) -> None:
            """Without the base class's look for an accelerator, which a CPU lacks."""
            self.receive_weights(self.parse_update_info(update_info))

        def receive_weights(self, update_info: FileUpdate) -> None:
            self.model.load_weights(update_info.tensors(str(self.device)))

        def finish_weight_update(self) -> None:
            finalize_layerwise_reload(self.model, self.model_config)
            _prepare_tied(self.model)

        def shutdown(self) -> None:
            """There is nothing to close."""

    return FileTransport


def _prepare_tied(model: Any) -> None:
    """Have layers that share their weight with another prepare it anew.

    A transfer brings a tied weight once, under the name of the embedding. vLLM prepares what
    was loaded; the output layer, under whose own name nothing came, would go on with what it had
    made of the weights before: on a CPU a packed copy of them.
    """
    seen: set[int] = set()
    for layer in model.modules():
        weight = getattr(layer, "_parameters", {}).get("weight")
        method: Any = getattr(layer, "quant_method", None)
        if id(weight) in seen and hasattr(method, "process_weights_after_loading"):
            method.process_weights_after_loading(layer)
        if weight is not None:
            seen.add(id(weight))
