"""A teacher spread over the processes of a run: each holds a share of its weights, and gathers a layer when it runs.

For teachers that do not fit a device beside the student. Law: its predictions are those of the whole model, to
rounding. Every process must run it equally often, as training in step does.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from xtoken.teachers.online import OnlineTeacher

__all__ = ["place", "shard"]


def place(teacher: OnlineTeacher, device: torch.device) -> OnlineTeacher:
    """Brings a teacher to where it runs: all of it in every process, or a share where it is to be sharded."""
    if teacher.sharded and not teacher.is_placed:
        teacher.is_placed = shard(teacher.model, device)
    return teacher.to(device)


def shard(model: nn.Module, device: torch.device) -> bool:
    """Shards a frozen model over all processes, layer by layer (FSDP2); whether there is more than one.

    Args:
        model: a Hugging Face causal LM; whole in every process, and moved to `device`.
        device: of this process.
    """
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return False
    n_processes = torch.distributed.get_world_size()
    if n_processes == 1:
        return False
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (n_processes,))
    model.to(device)
    names: Any = getattr(model, "_no_split_modules", None) or ()
    for part in model.modules():
        if type(part).__name__ in names:
            fully_shard(part, mesh=mesh)
    fully_shard(model, mesh=mesh, reshard_after_forward=True)  # there is no backward that would need it soon
    return True
