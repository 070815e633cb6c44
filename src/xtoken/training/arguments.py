"""The Trainer's arguments, from a run's settings.

Law: what the settings promise is what the Trainer does; a mistake that costs nothing to find is found before anything
is loaded (`check_arguments`).
"""

from __future__ import annotations

import difflib
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from xtoken.config import OptimConfig, RunConfig, flat_settings
from xtoken.errors import XTokenError
from xtoken.training.packages import check_settings_can_run

__all__ = ["check_arguments", "trainer_arguments"]

# Documents. A long one can fill a GPU by itself: the reference losses hold several tensors of chunk tokens by
# vocabulary (measured in docs/footguns.md). Who has short documents has room for more.
_DEFAULT_MICRO_BATCH = 1
_SCHEDULES = {"cosine": "cosine", "linear": "linear", "constant": "constant_with_warmup"}


def check_arguments(config: RunConfig) -> None:
    """Finds mistakes without loading anything.

    Raises:
        XTokenError: a tracker that is unknown or not installed; a batch that does not divide evenly; a setting that
            this installation or machine cannot honour.
    """
    check_settings_can_run(config)
    _check_trackers(config.output.trackers)
    _batches(config.optim)


def trainer_arguments(config: RunConfig, folder: Path, *, saves: bool, quiet: bool, keeps_best: bool = False) -> Any:
    """`TrainingArguments` for a run: unless told otherwise bf16 autocast on a GPU that has it, float32 elsewhere.

    Args:
        config: the run's settings.
        folder: for checkpoints and metrics.
        saves: whether to write checkpoints.
        quiet: whether to leave out the progress bar.
        keeps_best: whether one checkpoint more is kept, the best on held-out text.

    Raises:
        XTokenError: a batch that does not divide evenly; the Trainer counts other processes than the launcher started.
    """
    from xtoken.training.tracked import TrackedArguments

    optim, output, on_gpu = config.optim, config.output, torch.cuda.is_available()
    micro, accumulation = _batches(optim)
    bf16 = _uses_bf16(config)
    # Newer releases call it activation checkpointing.
    fields = TrackedArguments.__dataclass_fields__
    checkpointing = "activation_checkpointing" if "activation_checkpointing" in fields else "gradient_checkpointing"
    arguments = TrackedArguments(
        output_dir=str(folder),
        max_steps=optim.steps,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=accumulation,
        learning_rate=optim.learning_rate,
        lr_scheduler_type=_SCHEDULES[optim.schedule],
        warmup_steps=math.ceil(optim.warmup * optim.steps),
        weight_decay=optim.weight_decay,
        max_grad_norm=optim.max_grad_norm,
        seed=config.seed,
        bf16=bf16,
        use_cpu=bf16 and not torch.accelerator.is_available(),  # or it would look for a GPU that has bf16
        logging_steps=output.log_every,
        logging_nan_inf_filter=False,  # it waits for the device at every micro-batch, and hides what it finds
        save_strategy="steps" if saves else "no",
        save_steps=output.save_every,
        # The best is kept beside the newest; and with a limit of 1 the Trainer would delete the newest in its favour.
        save_total_limit=output.keep_checkpoints + keeps_best,
        report_to=output.trackers or "none",
        disable_tqdm=quiet,
        dataloader_pin_memory=on_gpu,
        **{checkpointing: optim.gradient_checkpointing},
    )
    _check_processes(arguments.world_size)
    _check_launcher(bf16)
    if any(teacher.device_map is not None for teacher in config.teachers):
        arguments._n_gpu = min(1, arguments.n_gpu)  # the others are the teachers', not for data parallelism
    arguments.run_settings = dict(flat_settings(config))
    return arguments


def _uses_bf16(config: RunConfig) -> bool:
    """Whether float32 weights compute in bfloat16, by autocast."""
    if config.optim.precision != "auto":
        return config.optim.precision == "bfloat16"
    has_bf16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    return has_bf16 and config.student.dtype in ("auto", "float32")


def _check_trackers(names: Sequence[str]) -> None:
    """The Trainer would find out only after everything is loaded."""
    if not names:
        return
    from transformers.integrations import get_available_reporting_integrations
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    for name in names:
        if name not in INTEGRATION_TO_CALLBACK:
            near = difflib.get_close_matches(name, INTEGRATION_TO_CALLBACK, n=1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            known = ", ".join(sorted(INTEGRATION_TO_CALLBACK))
            raise XTokenError(f"there is no tracker {name!r}{hint}; there are {known}")
        if name not in get_available_reporting_integrations():
            raise XTokenError(f"the tracker {name!r} is not installed; install its package, or leave it out")


def _batches(optim: OptimConfig) -> tuple[int, int]:
    """Documents in one forward pass, and passes in a step, of one process."""
    processes = _processes()
    share, rest = divmod(optim.batch_size, processes)
    if rest:
        raise XTokenError(f"optim.batch_size {optim.batch_size} does not divide among {processes} processes")
    micro = optim.micro_batch_size or _DEFAULT_MICRO_BATCH
    if share % micro:
        raise XTokenError(
            f"optim.batch_size {optim.batch_size} over {processes} processes is {share} documents each, which is not a "
            f"multiple of optim.micro_batch_size {micro}"
        )
    return micro, share // micro


def _processes() -> int:
    """How many the launcher started: torchrun and accelerate say so before anything is set up."""
    return int(os.environ.get("WORLD_SIZE") or 1)


def _check_processes(world_size: int) -> None:
    """Another count would cut the batch into other shares, or let every process train on its own."""
    if world_size != _processes():
        raise XTokenError(
            f"the environment says WORLD_SIZE {_processes()}, but the Trainer runs {world_size} process(es). Start "
            "them with torchrun or accelerate launch (on CPUs with ACCELERATE_USE_CPU=true); for one process, unset "
            "WORLD_SIZE."
        )


def _check_launcher(bf16: bool) -> None:
    """Refuses a launcher's mixed precision that is not the run's: it would win, and nobody would be told."""
    told, wanted = os.environ.get("ACCELERATE_MIXED_PRECISION", "no"), "bf16" if bf16 else "no"
    if told not in ("no", wanted):
        raise XTokenError(
            f"the launcher asks for mixed precision {told}, and this run computes in "
            f"{'bfloat16' if bf16 else 'float32'} (optim.precision): launch with --mixed_precision no, or make the two "
            "agree"
        )
