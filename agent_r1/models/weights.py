"""A network's weights for whoever serves them; the network itself stays where it is."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

from agent_r1.models.lora import has_lora, merged_state


class ModuleWeights:
    """The weights of a module, which training goes on to change. Tied weights come once.

    Implements :class:`agent_r1.rollout.engine.WeightSource`.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module

    def parameters(self) -> Iterable[tuple[str, Tensor]]:
        return self._module.named_parameters()

    def checkpoint(self) -> Iterable[tuple[str, Tensor]]:
        if has_lora(self._module):
            return merged_state(self._module).items()
        return ((name, tensor.detach()) for name, tensor in self._module.named_parameters())
