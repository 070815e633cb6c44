"""Trains a tiny student under DeepSpeed ZeRO, on CPUs; run by test_zero.py under torchrun.

python -m torch.distributed.run --nproc-per-node 2 zero.py OUT.pt STAGE

Stage 0 is without DeepSpeed, and needs ACCELERATE_USE_CPU=true.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate import PartialState
from transformers import TrainingArguments

sys.path.insert(0, str(Path(__file__).parent.parent))

from training import tiny
from training.processes import STUDENT, TEACHER, TEXTS, online
from xtoken.training import Side, XTokenTrainer, prepare, texts_from_list


def settings(stage: int) -> dict[str, Any]:
    zero: dict[str, Any] = {"stage": stage}
    if stage == 3:
        zero["stage3_gather_16bit_weights_on_model_save"] = True
    auto = ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping")
    own_optimizer = {"zero_allow_untested_optimizer": True, "zero_force_ds_cpu_optimizer": False}
    return {"zero_optimization": zero, **dict.fromkeys(auto, "auto"), **own_optimizer}


def count_processes(trainer: XTokenTrainer) -> None:
    """accelerate takes DeepSpeed on a machine without GPUs for one process, though the group has all."""
    for state in (PartialState(), trainer.accelerator.state):
        state.num_processes, state.process_index = dist.get_world_size(), dist.get_rank()
        state.local_process_index = dist.get_rank()


def main(out: str, stage: int) -> None:
    data = prepare(texts_from_list(TEXTS), Side(STUDENT, 64), [Side(TEACHER, 64)])
    teachers = [online("p-kl", "t", False), online("path-kl", "tt", False)]
    for teacher in teachers:
        teacher.model.float()
    arguments = TrainingArguments(
        tempfile.mkdtemp(),
        max_steps=3,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        learning_rate=1e-2,
        lr_scheduler_type="constant",
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        **({"deepspeed": settings(stage)} if stage else {"use_cpu": True}),
    )
    student = tiny.llama(STUDENT.size + 3)
    trainer = XTokenTrainer(student, teachers, arguments, data, student_vocab_size=STUDENT.size, kd_weight=0.7)
    if stage:
        count_processes(trainer)
    trainer.train()
    gathered = trainer.accelerator.get_state_dict(trainer.model_wrapped) if stage else student.state_dict()
    if dist.get_rank() == 0:
        weights = {name: weight.clone() for name, weight in gathered.items()}
        kind = type(trainer.model_wrapped).__name__
        torch.save({"weights": weights, "log": trainer.state.log_history, "wrapper": kind}, out)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
    dist.barrier()
    sys.stdout.flush()
    os._exit(0)  # threads of the group may abort the interpreter on its way down
