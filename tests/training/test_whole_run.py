"""A whole run in two processes: it ends as one does, goes on to the bit, and stops in all of them after one step."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from training import tiny

ROOT = Path(__file__).resolve().parents[2]
SHARDED = str(Path(__file__).with_name("whole_run.py"))
LAUNCHER = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
HOW = {"data parallel": ["-m", "xtoken", "train"], "FSDP2": [SHARDED]}
STEPS, STOPPED = 6, 143


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A config with everything on disk, evaluated on held-out text; the last student is saved."""
    root = tmp_path_factory.mktemp("whole")
    for name, texts in {"train": tiny.documents(40), "held": tiny.documents(7, seed=9)}.items():
        (root / f"{name}.txt").write_text("\n".join(texts))
    settings = {
        "student": {"model": str(tiny.student_folder(root / "student"))},
        "teachers": [{"model": str(tiny.teacher_folder(root / "teacher")), "loss": "p-kl"}],
        "data": {"files": [str(root / "train.txt")], "context_length": 64, "split_text_by": "line"},
        "eval": {"files": [str(root / "held.txt")], "every": 2, "save": "last", "split_text_by": "line"},
        "optim": {"steps": STEPS, "batch_size": 8, "micro_batch_size": 2, "learning_rate": 1e-2},
        "output": {"save_every": 2, "log_every": 1, "keep_checkpoints": 5},
    }
    (root / "config.yaml").write_text(yaml.safe_dump(settings))
    return root / "config.yaml"


def start(command: list[str], config: Path, folder: Path, *options: str) -> subprocess.Popen[str]:
    paths = os.pathsep.join([str(ROOT / "tests"), str(ROOT / "src")])
    settings = {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "XTOKEN_CACHE": str(config.parent / "cache")}
    return subprocess.Popen(
        [*command, str(config), "--quiet", "--set", f"output.folder={folder}", *options],
        env={**os.environ, **settings, "ACCELERATE_USE_CPU": "true"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(command: list[str], config: Path, folder: Path, *options: str) -> str:
    """What it printed on stdout."""
    process = start(command, config, folder, *options)
    try:
        printed, errors = process.communicate(timeout=150)
    finally:
        process.kill()
    assert process.returncode == 0, errors[-3000:]
    return printed


def weights(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = load_file(folder / "model.safetensors")
    return found


@pytest.fixture(scope="module")
def alone(config: Path) -> Path:
    run([sys.executable, *HOW["data parallel"]], config, config.parent / "alone")
    return config.parent / "alone"


@pytest.mark.slow
@pytest.mark.parametrize("how", HOW)
def test_two_processes_end_as_one_does_and_go_on_to_the_bit(
    tmp_path: Path, config: Path, alone: Path, how: str
) -> None:
    out, command = tmp_path / "out", [*LAUNCHER, *HOW[how]]
    assert run(command, config, out).count("student saved in") == 1
    found = weights(out)
    torch.testing.assert_close(found, weights(alone), rtol=1e-4, atol=1e-5)
    loaded = AutoModelForCausalLM.from_pretrained(out, dtype="auto").state_dict()
    assert all(torch.equal(loaded[name], weight) for name, weight in found.items())

    (out / "checkpoint-6" / "trainer_state.json").unlink()
    (out / "model.safetensors").unlink()
    assert run(command, config, out, "--resume").count("student saved in") == 1
    again = weights(out)
    assert found.keys() == again.keys()
    assert all(torch.equal(again[name], weight) for name, weight in found.items())


def ranks(launcher: int) -> list[int]:
    """The processes of a launcher, by rank."""
    children = [int(pid) for pid in Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()]
    found = {}
    for pid in children:
        variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        rank = [int(v.removeprefix(b"RANK=")) for v in variables if v.startswith(b"RANK=")]
        found.update(dict.fromkeys(rank, pid))
    return [found[rank] for rank in sorted(found)]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/environ").is_file(), reason="finds the processes in /proc")
@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_to_one_process_stops_both_after_the_same_step(tmp_path: Path, config: Path, rank: int) -> None:
    out, many = tmp_path / "out", ["--set", "optim.steps=100000", "--set", "eval.every=100000"]
    process = start([*LAUNCHER, *HOW["data parallel"]], config, out, *many, "--set", "output.save_every=100000")
    try:
        log, deadline = out / "metrics.jsonl", time.monotonic() + 100
        while process.poll() is None and time.monotonic() < deadline:
            if log.is_file() and log.read_text().count('"ce"') > 2:
                break
            time.sleep(0.05)
        os.kill(ranks(process.pid)[rank], signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 1, errors[-3000:]  # torchrun's own, whatever its processes say
    assert f"exitcode  : {STOPPED}" in errors
    assert errors.count("stopped after step") == 1
    assert len(list(out.glob("checkpoint-*/trainer_state.json"))) == 1
    assert {path.name for path in out.glob("checkpoint-*/rng_state_*.pth")} == {"rng_state_0.pth", "rng_state_1.pth"}
