"""What a run's settings need beside the core packages: optional packages, and a GPU of the right kind.

Law: a setting that cannot be honoured here is told before anything is loaded, with the way out.
"""

from __future__ import annotations

from importlib.util import find_spec

import torch

from xtoken.config import RunConfig
from xtoken.errors import XTokenError

__all__ = ["check_peft", "check_quantization", "check_settings_can_run"]


def check_settings_can_run(config: RunConfig) -> None:
    """Looks at the settings that not every installation and machine can honour.

    Raises:
        XTokenError: a package is not installed; there is no GPU, or none that can.
    """
    if config.student.lora is not None:
        check_peft("student.lora")
    for number, teacher in enumerate(config.teachers):
        if teacher.quantization is not None:
            check_quantization(f"teachers.{number}.quantization")
    if config.optim.precision == "bfloat16" and torch.cuda.is_available() and not torch.cuda.is_bf16_supported(False):
        raise XTokenError("optim.precision is bfloat16, which this GPU does not compute in; use float32")


def check_peft(what: str) -> None:
    """Refuses `what`, which needs peft, where that is not installed."""
    if find_spec("peft") is None:
        raise XTokenError(f"{what} needs the package peft, which is not installed: pip install 'xtoken[peft]'")


def check_quantization(what: str) -> None:
    """Refuses `what`, which needs bitsandbytes and a CUDA GPU, where either is missing."""
    if not torch.cuda.is_available():
        raise XTokenError(
            f"{what} needs a CUDA GPU, and there is none here: leave it out; dtype bfloat16 halves the memory anywhere"
        )
    if find_spec("bitsandbytes") is None:
        raise XTokenError(f"{what} needs the package bitsandbytes, which is not installed: pip install 'xtoken[quant]'")
