"""A network's weights for whoever serves them; the network itself stays where it is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor, nn

from agent_r1.models.lora import Adapter, adapters_of, base_weights


class ModuleWeights:
    """The weights of a module, which training goes on to change. Tied weights come once.

    Implements :class:`agent_r1.rollout.engine.AdapterSource`.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module

    def parameters(self) -> Iterable[tuple[str, Tensor]]:
        return self._module.named_parameters()

    def checkpoint(self) -> Iterable[tuple[str, Tensor]]:
        adapters = self.adapters()
        for name, weight in base_weights(self._module):
            yield name, adapters[name].merged(weight) if name in adapters else weight

    def adapters(self) -> Mapping[str, Adapter]:
        return adapters_of(self._module)

    def base(self) -> Iterable[tuple[str, Tensor]]:
        return base_weights(self._module)
