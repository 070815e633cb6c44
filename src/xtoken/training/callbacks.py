"""What happens beside the steps: a line of metrics, a progress bar that shows them, and a stop that loses nothing."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

from transformers import ProgressCallback, TrainerCallback

from xtoken.files import write_whole

__all__ = ["CheckpointFiles", "JsonLines", "LossBar", "StopRequest", "stop_on_interrupt"]

METRICS_FILE = "metrics.jsonl"
# transformers saves its arguments as a pickle beside every checkpoint, and nothing reads it. What resuming needs
# (optimizer.pt, scheduler.pt, rng_state.pth) is a pickle of torch's as well, and stays.
_PICKLED_ARGUMENTS = "training_args.bin"
_EVAL = "eval_"
_STDERR = 2
_STOPPING = b"\nstopping after this step, with a checkpoint; Ctrl-C again stops at once\n"
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class JsonLines(TrainerCallback):
    """Writes what is logged as one JSON object a line, to `metrics.jsonl` in the output folder.

    The Trainer's `eval_X` stands there as `eval/X`, as the trackers have it.

    A run that resumes first drops the lines past its checkpoint, so that each step stands there once. What is not
    finite is null: JSON has no NaN.
    """

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.is_world_process_zero:
            path = _metrics_file(args)
            write_whole(path, "".join(_lines_up_to(path, state.global_step)))

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        is_summary = logs is None or "train_runtime" in logs
        if state.is_world_process_zero and not is_summary:
            shown = {_shown(name): _json_number(value) for name, value in (logs or {}).items()}
            line = {"step": state.global_step, **shown}
            with _metrics_file(args).open("a", encoding="utf-8") as file:
                file.write(json.dumps(line, allow_nan=False) + "\n")


def _shown(name: str) -> str:
    return f"eval/{name.removeprefix(_EVAL)}" if name.startswith(_EVAL) else name


def _json_number(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _metrics_file(args: Any) -> Path:
    path = Path(args.output_dir) / METRICS_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _lines_up_to(path: Path, step: int) -> list[str]:
    if step == 0 or not path.is_file():
        return []
    lines = [line for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]
    return [line for line in lines if json.loads(line)["step"] <= step]


class LossBar(ProgressCallback):
    """The Trainer's bar with the two losses at its end, in place of a dict printed for every step."""

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        if state.is_world_process_zero and self.training_bar is not None and logs:
            shown = {name: f"{logs[name]:.3f}" for name in ("ce", "kd") if name in logs}
            if shown:
                self.training_bar.set_postfix(shown, refresh=False)


class CheckpointFiles(TrainerCallback):
    """Makes every checkpoint a model folder that loads by itself: adds the tokenizer's files.

    Args:
        tokenizer_files: copied as they are; none where the tokenizer has no files.
    """

    def __init__(self, tokenizer_files: list[Path]) -> None:
        self.tokenizer_files = tokenizer_files

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.is_world_process_zero:
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            (folder / _PICKLED_ARGUMENTS).unlink(missing_ok=True)
            for file in self.tokenizer_files:
                shutil.copy(file, folder / file.name)


class StopRequest(TrainerCallback):
    """Ends the training after the step at hand, with a checkpoint, once it is asked to.

    A signal may reach one of several processes, or each in another step, and who stops alone leaves the others waiting
    for ever. So the trainer adds up what each has heard, with the sums of a step, and all stop after the step in which
    they learn of it: the one at hand or the next.

    Attributes:
        asked: whether this process was.
        is_agreed: whether all know that some process was.
        signal: the number of the signal that asked first here, and once it is agreed the same in all; None where none
            did.
    """

    def __init__(self) -> None:
        self.asked, self.is_agreed = False, False
        self.signal: int | None = None

    def heard(self) -> list[float]:
        """What this process has to say: a 1 where it was asked, and one for the signal that asked."""
        return [float(self.asked), *(float(self.signal == number) for number in _SIGNALS)]

    def agree(self, heard: Sequence[float]) -> None:
        """Takes up the sums over all processes of what they have heard.

        Args:
            heard: as `heard` gives it, added up.
        """
        self.is_agreed = heard[0] > 0
        signals = [number for number, count in zip(_SIGNALS, heard[1:], strict=True) if count]
        self.signal = int(signals[-1]) if self.is_agreed and signals else self.signal

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.is_agreed or (self.asked and args.world_size == 1):
            control.should_save = True
            control.should_training_stop = True


@contextmanager
def stop_on_interrupt() -> Iterator[StopRequest]:
    """Turns the first Ctrl-C or SIGTERM into a stop request; a later Ctrl-C is an ordinary KeyboardInterrupt.

    The first is answered at once, for the step at hand may take long. A later SIGTERM changes nothing: a scheduler
    sends it to every process of a job and the launcher hands it on, so it comes twice, and who will not wait has
    SIGKILL. Outside the main thread Python delivers no signals, and both stay what they are.
    """
    request = StopRequest()

    def handle(number: int, frame: FrameType | None) -> None:
        if request.asked and number == signal.SIGINT:
            signal.default_int_handler(number, frame)
        if request.asked:
            return
        request.asked, request.signal = True, number
        with suppress(OSError):  # straight to the file: the signal may come in the middle of a print
            os.write(_STDERR, _STOPPING)

    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.signal(number, handle) for number in _SIGNALS}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
