"""Run by two processes: writes a model as an FSDP run and as a distributed checkpoint."""

import os
import sys

import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch.distributed import checkpoint as dcp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

_, rank, store, model_folder, out = sys.argv
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{store}", rank=int(rank), world_size=2)
mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("fsdp",))
tensors = load_file(f"{model_folder}/model.safetensors")
tensors.setdefault("lm_head.weight", tensors["model.embed_tokens.weight"])  # tied
state = {}
for name, tensor in tensors.items():
    whole = tensor.ndim == 1 and "norm" in name and "layers.0" in name
    placement = Replicate() if whole else Shard(0)
    state[name] = distribute_tensor(tensor.clone(), mesh, [placement])
os.makedirs(f"{out}/fsdp", exist_ok=True)
torch.save(state, f"{out}/fsdp/model_world_size_2_rank_{rank}.pt")
optimizer = {name: torch.zeros(3) for name in ("a", "b")}
dcp.save({"model": state, "optim": optimizer}, checkpoint_id=f"{out}/dcp")
dist.barrier()
dist.destroy_process_group()
