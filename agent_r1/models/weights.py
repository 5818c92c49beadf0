"""A network's weights for whoever serves them; the network itself stays where it is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor, nn

from agent_r1.models.lora import Adapter, adapters_of, base_weights
from agent_r1.models.sharded import first_names


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


def state_with(model: nn.Module, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The model's state dict with other values of its parameters, in the types that they have.

    A weight with several names may be among the values under any of them.
    """
    first = first_names(model)
    given = {first.get(name, name): tensor for name, tensor in values.items()}
    made: dict[str, Tensor] = {}
    for name, own in model.state_dict().items():
        kept = first.get(name, name)
        new = made.get(kept, given.get(kept))
        made[name] = own if new is None else new.to(own.dtype)
    return made
