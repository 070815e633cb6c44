"""Trains tiny models, in float64, in as many processes as the launcher started; run by test_processes.py.

python -m torch.distributed.run --nproc-per-node 2 processes.py OUT.pt PLANS
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from accelerate import FullyShardedDataParallelPlugin, PartialState
from accelerate.utils import DistributedType, gather_object
from transformers import TrainingArguments

sys.path.insert(0, str(Path(__file__).parent.parent))

from training import tiny
from xtoken.config import TeacherConfig
from xtoken.teachers.confidence import Adaptive
from xtoken.teachers.online import OnlineTeacher
from xtoken.training import Side, XTokenTrainer, prepare, side_key, texts_from_list
from xtoken.training.objectives import make_objective

STUDENT, TEACHER = tiny.packed(), tiny.split()
# Lengths, and with them counts of chunks, as uneven as can be.
SAMPLE = ["7", "Ada has 123 coins and gets 45 more: 168 in all.", "Bo", "Cleo 55 66 77 88 99 111 222 333 444 5"]
TEXTS = (3 * SAMPLE)[:11]  # no multiple of a step's 8, so that steps cross the ends of epochs


def online(loss: str, name: str, sharded: bool) -> OnlineTeacher:
    objective = make_objective(TeacherConfig(loss=loss), STUDENT, TEACHER, None)
    model = tiny.llama(TEACHER.size, seed=len(name)).double()
    return OnlineTeacher(name, model, TEACHER.size, objective.loss, side=side_key(TEACHER), sharded=sharded)


def use_fsdp2(trainer: XTokenTrainer) -> None:
    """accelerate shards over GPUs only; its own FSDP2 code runs on CPUs where it is told to."""
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="transformer_based_wrap",
        transformer_cls_names_to_wrap=["LlamaDecoderLayer"],
        state_dict_type="FULL_STATE_DICT",
        cpu_ram_efficient_loading=False,
    )
    state = trainer.accelerator.state
    state.distributed_type, state.fsdp_plugin, trainer.is_fsdp_enabled = DistributedType.FSDP, plugin, True
    PartialState().distributed_type = DistributedType.FSDP  # which the state above is filled from again and again


def train(asked: dict[str, Any]) -> dict[str, Any]:
    data = prepare(texts_from_list(TEXTS), Side(STUDENT, 64), [Side(TEACHER, 64)])
    teachers = [online(loss, "t" * (n + 1), asked.get("sharded", False)) for n, loss in enumerate(asked["losses"])]
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            max_steps=3,
            per_device_train_batch_size=asked["micro"],
            gradient_accumulation_steps=asked["accumulation"],
            learning_rate=1e-2,
            lr_scheduler_type="constant",
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=False,
            use_cpu=True,
        )
        trainer = XTokenTrainer(
            tiny.llama(STUDENT.size + 3).double(),
            teachers,
            arguments,
            data,
            student_vocab_size=STUDENT.size,
            kd_weight=asked["kd_weight"],
            adaptive=Adaptive("ce", 2.0) if asked.get("adaptive") else None,
            gradient_norms=asked.get("gradient_norms"),
        )
        if asked.get("fsdp2"):
            use_fsdp2(trainer)
        trainer.train()
        named = trainer.accelerator.unwrap_model(trainer.model).named_parameters()
        whole = {n: p.full_tensor() if hasattr(p, "full_tensor") else p for n, p in named}
        kinds = {type(p).__name__ for p in trainer.model.parameters()}
        of_teachers = {type(p).__name__ for t in teachers for p in t.model.parameters()}
    weights = {name: value.detach().clone() for name, value in whole.items()}
    found = {"weights": weights, "log": trainer.state.log_history, "processes": trainer.accelerator.num_processes}
    factors = gather_object([str(trainer.distiller.kd_weight)])  # to the last digit
    found["factors"] = factors
    return {**found, "parameters": sorted(kinds), "teachers": sorted(of_teachers)}


def main(out: str, plans: str) -> None:
    found = {name: train(plan) for name, plan in json.loads(plans).items()}
    if int(os.environ["RANK"]) == 0:
        torch.save(found, out)


if __name__ == "__main__":
    main(*sys.argv[1:])
