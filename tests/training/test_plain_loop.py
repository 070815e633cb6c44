"""The example that uses the loss without the Trainer runs, and learns."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from training import tiny

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "plain_loop.py"


def test_the_plain_loop_learns(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("plain_loop", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    student = tiny.student_folder(tmp_path / "s")
    teacher = tiny.save(tmp_path / "t", tiny.taught(tiny.teacher()), 1, 360)
    (tmp_path / "text.txt").write_text("\n".join(tiny.documents(40)))
    history = module.main([str(student), str(teacher), str(tmp_path / "text.txt"), "--steps", "15", "--lr", "3e-3"])
    assert history[-1] < 0.8 * history[0]
