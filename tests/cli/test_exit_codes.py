"""What a script can tell from the exit code of the command as it is installed, and that help says so."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import xtoken.training
from cli.test_train_cli import _own_cache, config, models
from xtoken.cli import app
from xtoken.cli.console import EXIT_CODES
from xtoken.errors import DivergedError

__all__ = ["_own_cache", "models"]  # fixtures


def xtoken_command(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "xtoken", *arguments],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_done_is_0_and_a_mistake_is_2(tmp_path: Path) -> None:
    assert xtoken_command("schema").returncode == 0
    missing = xtoken_command("train", str(tmp_path / "none.yaml"))
    assert (missing.returncode, missing.stdout) == (2, "")
    assert "there is no config file" in missing.stderr
    assert xtoken_command("train", "--no-such-option").returncode == 2


def test_a_fault_of_ours_is_1_with_its_traceback() -> None:
    broken = (
        "import xtoken.config\n"
        "def load_config(*_, **__): raise RuntimeError('a fault')\n"
        "xtoken.config.load_config = load_config\n"
        "from xtoken.cli import main\n"
        "main()\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", broken, "train", "run.yaml"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert found.returncode == 1
    assert "RuntimeError: a fault" in found.stderr


@pytest.mark.parametrize(
    ("error", "code"), [(DivergedError("step 3: ce is nan"), 3), (KeyboardInterrupt(), 130)], ids=["diverged", "ctrl-c"]
)
def test_training_that_ends_otherwise_has_a_code(
    tmp_path: Path, models: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int
) -> None:
    def distil(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(xtoken.training, "distil", distil)
    result = CliRunner().invoke(app, ["train", str(config(tmp_path, models))])
    assert result.exit_code == code
    assert "Traceback" not in result.output
    if code == 3:
        assert "step 3: ce is nan" in result.stderr


def test_sigterm_leaves_a_checkpoint_and_ends_with_143(tmp_path: Path, models: Path) -> None:
    steps = {"optim": {"steps": 100_000, "batch_size": 4, "schedule": "constant"}}
    file, metrics = config(tmp_path, models, **steps), tmp_path / "out" / "metrics.jsonl"
    process = subprocess.Popen(
        [sys.executable, "-m", "xtoken", "train", str(file)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        deadline = time.monotonic() + 120
        while not (metrics.exists() and metrics.read_text().count("\n") > 3):
            assert process.poll() is None, process.stderr and process.stderr.read()
            assert time.monotonic() < deadline, "no steps were made"
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 143
    assert "Traceback" not in out + err
    done = int(re.search(r"stopped after step ([\d,]+) of 100,000", err)[1].replace(",", ""))  # type: ignore[index]
    assert (tmp_path / "out" / f"checkpoint-{done}" / "trainer_state.json").exists()


def test_help_says_them() -> None:
    for command in (["--help"], ["train", "--help"]):
        shown = " ".join(CliRunner().invoke(app, command, env={"COLUMNS": "80"}).stdout.split())
        for code, meaning in EXIT_CODES.items():
            assert f"{code} {meaning}" in shown
