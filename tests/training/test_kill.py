"""A run that is killed at any moment goes on, and ends as if it had not been: weights, optimizer and log to the bit."""

from __future__ import annotations

import json
import os
import random
import signal
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers.trainer_callback import TrainerState

from training import tiny
from xtoken.training import XTokenTrainer, distil

STEPS, SAVE_EVERY, WINDOW = 9, 3, 2  # micro-batches in a step
TEXTS = tiny.documents(20, seed=4)
Patch = Callable[[pytest.MonkeyPatch], None]


DATA: dict[str, dict[str, Any]] = {
    "packed": {"packing": "documents"},
    "streamed": {"streaming": True, "shuffle_buffer": 5, "workers": 0},
}


def config(folder: Path, data: str) -> dict[str, Any]:
    """Everything with a memory: dropout, dynamic scaling, adaptive weights, a learnable W, lines over several steps."""
    (folder.parent / "text.txt").write_text("\n".join(TEXTS))
    learnable = {"learnable": True, "learning_rate": 0.1}
    return {
        "teachers": [{"loss": "p-kl", "name": "a", "projection": learnable}, {"loss": "path-kl", "name": "b"}],
        "data": {"files": [str(folder.parent / "text.txt")], "context_length": 120, **DATA[data]},
        "loss": {"kd_weight": "dynamic", "teacher_weights": "entropy", "kd_warmup": 0.5},
        "optim": {"steps": STEPS, "batch_size": 2 * WINDOW, "micro_batch_size": 2, "learning_rate": 1e-2},
        "output": {"folder": str(folder), "save_every": SAVE_EVERY, "log_every": 2},
        "seed": 3,
    }


def run(folder: Path, data: str, *, resume: bool = False) -> None:
    student, teachers = tiny.student(attention_dropout=0.1), [tiny.teacher(seed=1), tiny.teacher(seed=2)]
    distil(config(folder, data), student=student, teachers=teachers, resume=resume, quiet=True)


def killed(folder: Path, data: str, patch: Patch) -> bool:
    """Runs it in a process of its own, in which `patch` has set a trap; whether SIGKILL ended it."""
    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)  # the pool of threads did not come along
        status = 1
        try:
            patch(pytest.MonkeyPatch())
            run(folder, data, resume=True)
            status = 0
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL


def kill_in(owner: type, method: str, call: int, *, after: bool = False) -> Patch:
    """SIGKILL in the n-th call of a method, before or after its work."""

    def patch(patches: pytest.MonkeyPatch) -> None:
        original, calls = getattr(owner, method), iter(range(1, 1000))

        def trapped(*args: Any, **kwargs: Any) -> Any:
            is_due = next(calls) == call
            if is_due and not after:
                os.kill(os.getpid(), signal.SIGKILL)
            found = original(*args, **kwargs)
            if is_due:
                os.kill(os.getpid(), signal.SIGKILL)
            return found

        patches.setattr(owner, method, trapped)

    return patch


def half_a_state(patches: pytest.MonkeyPatch) -> None:
    """SIGKILL when half of the second checkpoint's trainer_state.json is on the disk."""
    calls = iter(range(1, 1000))
    original = TrainerState.save_to_json

    def trapped(state: TrainerState, path: str) -> None:
        original(state, path)
        if next(calls) == 2:
            whole = Path(path).read_text()
            Path(path).write_text(whole[: len(whole) // 2])
            os.kill(os.getpid(), signal.SIGKILL)

    patches.setattr(TrainerState, "save_to_json", trapped)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of the run that nothing interrupts."""

    @cache
    def finished(data: str) -> Path:
        folder = tmp_path_factory.mktemp("unbroken")
        with pytest.MonkeyPatch.context() as patches:
            patches.setenv("XTOKEN_CACHE", str(folder / "cache"))
            run(folder / "out", data)
        return folder / "out"

    return finished


def check_same(folder: Path, unbroken: Path) -> None:
    saved = [sorted(path.glob("*.safetensors")) for path in (unbroken, folder)]
    assert [file.name for file in saved[0]] == ["model.safetensors", "projection-a.safetensors"]
    for one, other in zip(*saved, strict=True):
        assert one.name == other.name
        assert all(torch.equal(a, load_file(other)[name]) for name, a in load_file(one).items())
    last = f"checkpoint-{STEPS}/optimizer.pt"
    states = [torch.load(path / last, weights_only=True)["state"] for path in (unbroken, folder)]
    assert states[0].keys() == states[1].keys()
    for number, state in states[0].items():
        assert all(torch.equal(value, states[1][number][name]) for name, value in state.items())
    logs = [(path / "metrics.jsonl").read_text().splitlines() for path in (unbroken, folder)]
    lines = [[{k: v for k, v in json.loads(x).items() if k != "tokens_per_second"} for x in log] for log in logs]
    assert lines[0] == lines[1]
    assert [line["step"] for line in lines[0]] == [2, 4, 6, 8]


@pytest.mark.parametrize("data", sorted(DATA))
@pytest.mark.parametrize("micro_batch", sorted(random.Random(0).sample(range(1, STEPS * WINDOW + 1), 10)))
def test_killed_in_any_micro_batch_it_ends_as_the_unbroken_run(
    tmp_path: Path, unbroken: Callable[[str], Path], micro_batch: int, data: str
) -> None:
    assert killed(tmp_path / "out", data, kill_in(XTokenTrainer, "training_step", micro_batch))
    run(tmp_path / "out", data, resume=True)
    check_same(tmp_path / "out", unbroken(data))


@pytest.mark.parametrize(
    "patch",
    [
        kill_in(XTokenTrainer, "save_model", 2, after=True),
        kill_in(XTokenTrainer, "_save_optimizer_and_scheduler", 2),
        kill_in(XTokenTrainer, "_save_rng_state", 2, after=True),
        half_a_state,
    ],
    ids=["after the weights", "before the optimizer", "before the state", "in the state"],
)
def test_killed_while_a_checkpoint_is_written_it_goes_on_from_the_one_before(
    tmp_path: Path, unbroken: Callable[[str], Path], patch: Patch
) -> None:
    assert killed(tmp_path / "out", "packed", patch)
    assert (tmp_path / "out" / "checkpoint-3" / "trainer_state.json").is_file()
    assert (tmp_path / "out" / "checkpoint-6").is_dir()
    run(tmp_path / "out", "packed", resume=True)
    check_same(tmp_path / "out", unbroken("packed"))


def test_killed_again_and_again(tmp_path: Path, unbroken: Callable[[str], Path]) -> None:
    kills = 0
    while killed(tmp_path / "out", "streamed", kill_in(XTokenTrainer, "training_step", SAVE_EVERY * WINDOW + 1)):
        kills += 1
        assert kills < 5
    assert kills == 2
    check_same(tmp_path / "out", unbroken("streamed"))
