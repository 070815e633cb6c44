"""Evaluation by two processes in earnest: the figures of one, in both, also of a model whose weights are spread."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from training import tiny
from training.two_processes import HELD_OUT, main
from xtoken.evaluation import bits_per_byte

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_two_processes_find_what_one_does(tmp_path: Path) -> None:
    paths = os.pathsep.join([str(ROOT / "tests"), str(ROOT / "src")])
    settings = {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    found = subprocess.run(
        [*launcher, str(Path(__file__).with_name("two_processes.py")), str(tmp_path / "two")],
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert found.returncode == 0, found.stderr
    main(str(tmp_path / "one"))
    alone, *both = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("one.0", "two.0", "two.1"))
    whole = bits_per_byte(tiny.student().model, tiny.packed(), HELD_OUT).bits_per_byte
    assert both[0] == both[1]
    assert both[0]["run"] == pytest.approx(alone["run"], rel=1e-4)
    assert both[0]["saved"] == alone["saved"]
    assert both[0]["sharded"] == pytest.approx(whole, rel=1e-5)
    assert (tmp_path / "two" / "README.md").is_file()
