"""Two processes under DeepSpeed ZeRO-2 and ZeRO-3 train as plain data parallelism does; needs deepspeed."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

SCRIPT = str(Path(__file__).with_name("zero.py"))


def trained(folder: Path, stage: int) -> dict[str, Any]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "XTOKEN_CACHE": str(folder)}
    environment.pop("ACCELERATE_USE_CPU", None)  # with it accelerate leaves DeepSpeed out in silence
    if not stage:
        environment["ACCELERATE_USE_CPU"] = "true"
    command = [*launcher, SCRIPT, str(folder / "out.pt"), str(stage)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = torch.load(folder / "out.pt", weights_only=True)
    return found


@pytest.mark.slow
@pytest.mark.skipif(find_spec("deepspeed") is None, reason="deepspeed is not installed")
@pytest.mark.skipif(torch.cuda.is_available(), reason="tells accelerate by hand what it does not see on CPUs")
@pytest.mark.parametrize("stage", [2, 3])
def test_zero_trains_as_data_parallelism_does(tmp_path: Path, stage: int) -> None:
    plain, zero = trained(tmp_path, 0), trained(tmp_path, stage)
    assert zero["wrapper"] == "DeepSpeedEngine"
    torch.testing.assert_close(zero["weights"], plain["weights"], rtol=1e-3, atol=1e-4)
    for line, same in zip(plain["log"], zero["log"], strict=True):
        for key in line.keys() & {"loss", "ce", "kd", "grad_norm"}:
            assert same[key] == pytest.approx(line[key], rel=1e-5), key
