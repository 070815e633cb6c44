"""The example of a Trainer runs as it is, on tiny models, and learns; teachers are loaded as a config has them."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from training import tiny
from xtoken.errors import XTokenError
from xtoken.training import load_teacher

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def example(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """A folder with a student, a teacher that knows the text, and the text."""
    tiny.student_folder(tmp_path / "student")
    tiny.save(tmp_path / "teacher", tiny.taught(tiny.teacher()), 1, 360)
    (tmp_path / "text.txt").write_text("\n".join(tiny.documents(40)))
    return tmp_path


def test_the_trainer_learns_and_its_student_loads_with_plain_transformers(made: Path) -> None:
    tiny.save(made / "other", tiny.taught(tiny.teacher(seed=2)), 1, 360)
    arguments = [str(made / name) for name in ("student", "text.txt", "out", "teacher", "other")]
    quiet = {"report_to": "none", "disable_tqdm": True, "save_strategy": "no", "dataloader_pin_memory": False}
    trainer = example("trainer").main(arguments, max_steps=30, learning_rate=3e-3, **quiet)
    first, *_, last = (line for line in trainer.state.log_history if "ce" in line)
    assert last["ce"] < 0.8 * first["ce"]
    assert {"kd/teacher", "kd/other"} <= set(last)
    ids = torch.tensor([[0, 5, 6, 7]])
    loaded = AutoModelForCausalLM.from_pretrained(made / "out")
    assert torch.equal(loaded(ids).logits, trainer.model.eval()(ids).logits)
    assert AutoTokenizer.from_pretrained(made / "out")("Ada has 123").input_ids[0] == 0


def test_the_trainers_example_is_short() -> None:
    assert len((EXAMPLES / "trainer.py").read_text().splitlines()) < 40


def test_a_teacher_is_loaded_as_the_config_would_have_it(made: Path) -> None:
    student = tiny.student()
    teacher = load_teacher(str(made / "teacher"), student, weight=0.5, temperature=2.0)
    assert (teacher.config.name, teacher.config.loss, teacher.context_length) == ("teacher", "p-kl", 128)
    assert "digits-3" in teacher.objective.reason
    online = teacher.online()
    assert (online.name, online.weight, online.temperature) == ("teacher", 0.5, 2.0)
    named = load_teacher(tiny.teacher(), student, name="big", loss="gold", context_length=64)
    assert (named.online().name, named.config.loss, named.side.context_length) == ("big", "gold", 64)


@pytest.mark.parametrize(
    ("model", "settings", "message"),
    [
        ("./nowhere", {}, "teacher: there is no model folder ./nowhere"),
        (tiny.teacher(), {"los": "p-kl"}, r"unknown key teachers.0.los \(did you mean 'loss'"),
        (tiny.teacher(), {"loss": "gold", "top_k": 3}, "top_k has no effect on the loss 'gold'"),
        (tiny.teacher(), {"context_length": 1000}, "has 128 positions"),
    ],
)
def test_a_mistake_about_a_teacher_is_told(model: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(XTokenError, match=message):
        load_teacher(model, tiny.student(), **settings)
