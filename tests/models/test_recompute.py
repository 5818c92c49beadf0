import copy

import pytest
import torch
from torch import nn

from agent_r1.models.load import enable_packing, load_model
from agent_r1.models.logprobs import token_logprobs
from agent_r1.models.recompute import recompute_elementwise
from agent_r1.testing.models import tiny_model

IDS = (torch.arange(48).view(2, 24) * 11 + 5) % 250
LENGTHS = torch.tensor([24, 17])


def gradients(model, autocast=False):
    """Loss and gradients of one pass, and the bytes that autograd kept for it."""
    kept: dict[int, int] = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    for name, module in model.named_modules():  # inputs of recomputed parts are kept unseen
        if name.endswith(("gate_proj", "up_proj")):
            module.register_forward_hook(lambda _module, _inputs, output: (pack(output), None)[1])
        elif name.endswith("norm"):
            module.register_forward_pre_hook(lambda _module, inputs: (pack(inputs[0]), None)[1])
    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=autocast),
    ):
        loss = token_logprobs(model, IDS, LENGTHS).logprobs.sum()
    loss.backward()
    return loss.detach(), [p.grad for p in model.parameters()], sum(kept.values())


@pytest.mark.parametrize("autocast", [False, True])
def test_values_and_gradients_stay_the_same_to_the_last_bit(autocast):
    plain = tiny_model()
    enable_packing(plain)
    lean = copy.deepcopy(plain)
    blocks = plain.config.num_hidden_layers
    assert recompute_elementwise(lean) == blocks * (1 + 2 + 2) + 1  # MLP, norms, q and k, final
    loss, expected, kept = gradients(plain, autocast)
    lean_loss, found, lean_kept = gradients(lean, autocast)
    assert torch.equal(loss, lean_loss)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert lean_kept < 0.75 * kept


def test_a_block_that_computes_something_else_is_left_alone():
    class Doubled(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate_proj = nn.Linear(4, 8)
            self.up_proj = nn.Linear(4, 8)
            self.down_proj = nn.Linear(8, 4)
            self.act_fn = nn.SiLU()

        def forward(self, hidden):
            gated = self.act_fn(self.gate_proj(hidden)) * self.up_proj(hidden)
            return 2 * self.down_proj(gated)

    assert recompute_elementwise(nn.ModuleList([Doubled()])) == 0


def test_models_are_loaded_that_way(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    _, _, kept = gradients(load_model(tmp_path))
    plain = tiny_model()
    enable_packing(plain)
    assert kept < 0.75 * gradients(plain)[2]
