"""What vLLM loads in its own processes: a weight transport by way of files.

vLLM's transports need GPUs. This one carries tensors in a safetensors file, best in memory
(``/dev/shm``), and works wherever trainer and engine see the same file system, CPUs among
them. It is registered by the entry point group ``vllm.general_plugins``, so agent_r1 must be
installed in the environment that vLLM runs in.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

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
    """One safetensors file with tensors as a model folder of Hugging Face has them."""

    path: str


def __getattr__(name: str) -> Any:
    """The class is made when vLLM asks for it, as its base is vLLM's."""
    if name != "FileTransport":
        raise AttributeError(name)
    return _make()


def _make() -> Any:
    from safetensors import safe_open
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
            with safe_open(update_info.path, framework="pt", device=str(self.device)) as file:
                names = file.keys()
                self.model.load_weights((name, file.get_tensor(name)) for name in names)

        def finish_weight_update(self) -> None:
            finalize_layerwise_reload(self.model, self.model_config)

        def shutdown(self) -> None:
            """There is nothing to close."""

    return FileTransport
