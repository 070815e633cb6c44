"""Two processes train as one does: to rounding in float64, with chunks as unevenly spread as can be."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.slow  # processes that start anew

SCRIPT = Path(__file__).parent / "processes.py"
PLANS: dict[str, dict[str, Any]] = {
    "fixed": {"losses": ["p-kl", "path-kl"], "kd_weight": 0.7},
    "dynamic": {"losses": ["p-kl"], "kd_weight": "dynamic"},
    "adaptive": {"losses": ["p-kl", "gold"], "kd_weight": "dynamic", "adaptive": True},
}
UNSHARDED: dict[str, dict[str, Any]] = {  # what is refused where the student is sharded
    "by gradient": {"losses": ["p-kl", "gold"], "kd_weight": "gradient", "gradient_norms": 2},
}
COMPARED = {"loss", "ce", "kd", "kd_factor", "kept_chunks", "grad_norm", "teacher_weight/t"}
COMPARED |= {"gradient_norm/ce", "gradient_norm/kd", "gradient_norm/kd/t", "push_ratio"}


def trained(folder: Path, processes: int, **how: Any) -> dict[str, Any]:
    """What becomes of every plan."""
    out = folder / f"{processes}.pt"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "XTOKEN_CACHE": str(folder)}
    asked = PLANS if how.get("fsdp2") else PLANS | UNSHARDED
    plans = json.dumps({name: {**plan, **how} for name, plan in asked.items()})
    done = subprocess.run(
        [*command, str(SCRIPT), str(out), plans], env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = torch.load(out, weights_only=True)
    assert {plan["processes"] for plan in found.values()} == {processes}
    return found


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One process, a document at a time."""
    return trained(tmp_path_factory.mktemp("alone"), 1, micro=1, accumulation=8)


@pytest.mark.parametrize(
    "how", [{}, {"fsdp2": True, "sharded": True}], ids=["data parallel", "student and teachers sharded"]
)
def test_two_processes_train_as_one_does(tmp_path: Path, alone: dict[str, Any], how: dict[str, Any]) -> None:
    two = trained(tmp_path, 2, micro=2, accumulation=2, **how)
    assert two.keys() == alone.keys() - (UNSHARDED if how else {})
    for name, same_plan in two.items():
        one = alone[name]
        assert len(set(same_plan["factors"])) == 1
        assert two[name]["parameters"] == two[name]["teachers"] == ["DTensor" if how else "Parameter"]
        for parameter, weight in one["weights"].items():
            torch.testing.assert_close(two[name]["weights"][parameter], weight, rtol=1e-8, atol=1e-10)
        for line, same in zip(one["log"], two[name]["log"], strict=True):
            for key in line.keys() & COMPARED:
                assert same[key] == pytest.approx(line[key], rel=1e-6), (name, key)
