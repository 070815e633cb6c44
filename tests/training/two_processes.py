"""What each of two processes does in `test_two_processes.py`; started by torchrun, leaves its figures as JSON."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard

from training import tiny
from xtoken.evaluation import CutText, Share
from xtoken.training import distil

HELD_OUT = tiny.documents(7, seed=9)  # no multiple of two: one process has a pass that does not count


def main(folder: str) -> None:
    """Writes FOLDER.RANK.json."""
    result = distil(
        {
            "optim": {"steps": 4, "batch_size": 4, "micro_batch_size": 2, "learning_rate": 3e-3},
            "eval": {"every": 2, "batch_size": 2},
            "output": {"folder": folder},
        },
        student=tiny.student(),
        texts=tiny.documents(40),
        eval_texts=HELD_OUT,
        quiet=True,
    )
    figures = {"run": [each.bits_per_byte for each in result.evaluations], "saved": result.student_step}
    if dist.is_initialized():
        figures["sharded"] = sharded()
    rank = dist.get_rank() if dist.is_initialized() else 0
    Path(f"{folder}.{rank}.json").write_text(json.dumps(figures))


def sharded() -> float:
    """Bits per byte of the untrained student, its weights spread over the processes."""
    model = tiny.student().model
    fully_shard(model)  # every forward pass gathers the weights from both

    def add(sums: np.ndarray) -> np.ndarray:
        total = torch.from_numpy(sums)
        dist.all_reduce(total)
        return total.numpy()

    share = Share(dist.get_rank(), dist.get_world_size(), add)
    text = CutText(model, tiny.packed(), HELD_OUT)
    return text.score(model, batch_size=1, share=share).bits_per_byte


if __name__ == "__main__":
    main(sys.argv[1])
    dist.barrier()
    # Seen once: a thread of torch's aborts the interpreter on its way down, after the group was destroyed.
    os._exit(0)
