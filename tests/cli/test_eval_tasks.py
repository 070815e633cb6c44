"""`xtoken eval --tasks` on a student that a run left: the table, the file, the model card, and mistakes."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import datasets
import pytest
import typer
from click.testing import Result
from huggingface_hub import ModelCard
from typer.testing import CliRunner

from evaluation.local_tasks import choices, write_tasks
from training import tiny
from xtoken.cli.eval import eval_command
from xtoken.training import distil
from xtoken.training.card import CARD_FILE
from xtoken.training.output import clear_folder

app = typer.Typer()
app.command("eval")(eval_command)


@pytest.fixture(autouse=True)
def _hermetic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import lm_eval.tasks

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    manager = partial(lm_eval.tasks.TaskManager, include_defaults=False)
    monkeypatch.setattr(lm_eval.tasks, "TaskManager", manager)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run, with its card."""
    folder = tmp_path_factory.mktemp("runs")
    base = tiny.student_folder(folder / "base", max_position_embeddings=256)
    raw = {
        "student": str(base),
        "optim": {"steps": 2, "batch_size": 4},
        "data": {"context_length": 64},
        "output": {"folder": str(folder / "my_student")},
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XTOKEN_CACHE", str(folder / "cache"))
        distil(raw, texts=tiny.documents(16), quiet=True)
    return folder / "my_student"


@pytest.fixture
def student(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "my_student"))


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = [{"question": row["question"], "answer": "7"} for row in choices()]
    return write_tasks(tmp_path_factory.mktemp("tasks") / "own", choices(), rows)


def evaluate(model: Path | str, tasks: Path, *options: str, names: str = "choose,write") -> Result:
    command = [str(model), "--tasks", names, "--include", str(tasks), *options]
    return CliRunner().invoke(app, command, env={"COLUMNS": "160"})


def test_the_table_the_file_and_the_card_say_the_same(student: Path, tasks: Path) -> None:
    result = evaluate(student, tasks, "--shots", "1")
    assert result.exit_code == 0, result.stderr
    assert f"written to {student / 'xtoken_tasks.json'}" in result.stderr
    found = json.loads((student / "xtoken_tasks.json").read_text())
    assert [task["task"] for task in found["tasks"]] == ["choose", "write"]
    card = (student / CARD_FILE).read_text()
    for task in found["tasks"]:
        assert (task["shots"], task["documents"], task["dtype"]) == (1, len(choices()), "float32")
        for metric in task["metrics"]:
            label = metric["name"] + (f" ({metric['filter']})" if metric["filter"] else "")
            cells = [task["task"], label, f"{metric['value']:.4f}", f"{metric['stderr']:.4f}", str(len(choices())), "1"]
            shown = r"\s*[│|]\s*".join(re.escape(cell) for cell in cells)
            assert re.search(shown, result.stdout)
            assert re.search(shown, card.replace("\\_", "_"))
    index = {(each.dataset_type, each.metric_name): each.metric_value for each in ModelCard(card).data.eval_results}
    assert index == {
        (task["task"], f"{task['task']}: {m['name']}" + (f" ({m['filter']})" if m["filter"] else "")): m["value"]
        for task in found["tasks"]
        for m in task["metrics"]
    }
    assert ModelCard(card).data.model_name == "my_student"


def test_doing_it_again_changes_nothing(student: Path, tasks: Path) -> None:
    before = (student / CARD_FILE).read_text()
    evaluate(student, tasks)
    first = [(student / name).read_text() for name in (CARD_FILE, "xtoken_tasks.json")]
    evaluate(student, tasks)
    assert [(student / name).read_text() for name in (CARD_FILE, "xtoken_tasks.json")] == first
    assert first[0].count("## Tasks") == 1
    # All that was there is there still.
    kept = re.sub(r"<!-- xtoken eval: tasks.*end of tasks -->\n", "", first[0], flags=re.DOTALL)
    assert ModelCard(kept.replace("\n\n\n", "\n\n")).text == ModelCard(before).text
    data = ModelCard(kept).data
    assert (data.tags, data.library_name) == (["xtoken", "knowledge-distillation"], "transformers")


def test_tasks_measured_one_after_the_other_stand_together(student: Path, tasks: Path) -> None:
    evaluate(student, tasks, names="choose")
    evaluate(student, tasks, names="write")
    card = (student / CARD_FILE).read_text()
    assert {each.dataset_name for each in ModelCard(card).data.eval_results} == {"choose", "write"}
    assert card.count("| choose | acc |") == 1


def test_json_is_one_object_and_nothing_else(student: Path, tasks: Path) -> None:
    result = evaluate(student, tasks, "--json")
    assert json.loads(result.stdout) == json.loads((student / "xtoken_tasks.json").read_text())


def test_another_file_leaves_the_folder_as_it_is(student: Path, tasks: Path, tmp_path: Path) -> None:
    before = {file.name: file.read_bytes() for file in student.iterdir() if file.is_file()}
    result = evaluate(student, tasks, "--out", str(tmp_path / "new" / "figures.json"))
    assert result.exit_code == 0, result.stderr
    assert {file.name: file.read_bytes() for file in student.iterdir() if file.is_file()} == before
    assert json.loads((tmp_path / "new" / "figures.json").read_text())["model"] == "my_student"


def test_a_trial_is_not_written_down(student: Path, tasks: Path) -> None:
    result = evaluate(student, tasks, "--limit", "2")
    assert "not written down, for this is a trial (--limit); --out FILE writes it" in result.stderr
    assert not (student / "xtoken_tasks.json").exists()
    assert "## Tasks" not in (student / CARD_FILE).read_text()


def test_a_trial_that_was_written_into_the_folder_stays_out_of_the_card(student: Path, tasks: Path) -> None:
    file = student / "xtoken_tasks.json"
    assert evaluate(student, tasks, "--limit", "2", "--out", str(file), names="choose").exit_code == 0
    assert evaluate(student, tasks, names="write").exit_code == 0
    assert [task["limit"] for task in json.loads(file.read_text())["tasks"]] == [2, None]
    assert {each.dataset_name for each in ModelCard((student / CARD_FILE).read_text()).data.eval_results} == {"write"}


def test_figures_that_are_dropped_are_named(student: Path, tasks: Path, tmp_path: Path) -> None:
    evaluate(student, tasks, names="choose")
    weights = student / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + bytes(4))
    result = evaluate(student, tasks, names="write")
    assert "figures of other weights, now dropped from it: choose" in result.stderr
    assert [task["task"] for task in json.loads((student / "xtoken_tasks.json").read_text())["tasks"]] == ["write"]
    assert "now dropped" not in evaluate(student, tasks, names="choose").stderr


def test_a_readme_of_ones_own_stays(student: Path, tasks: Path) -> None:
    (student / CARD_FILE).write_text("mine")
    result = evaluate(student, tasks)
    assert "is not xtoken's, so it stays" in result.stderr
    assert (student / CARD_FILE).read_text() == "mine"
    (student / CARD_FILE).unlink()
    assert evaluate(student, tasks).exit_code == 0
    assert not (student / CARD_FILE).exists()


def test_replacing_a_run_removes_its_figures(student: Path, tasks: Path) -> None:
    evaluate(student, tasks)
    clear_folder(student)
    assert not (student / "xtoken_tasks.json").exists()


def test_the_dtype_is_that_asked_for(student: Path, tasks: Path) -> None:
    result = evaluate(student, tasks, "--dtype", "bfloat16", "--device", "cpu", "--json", names="choose")
    assert json.loads(result.stdout)["tasks"][0]["dtype"] == "bfloat16"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "give either --text FILE or --tasks NAMES"),
        (["--tasks", "choose", "--text", "a.txt"], "give either --text FILE or --tasks NAMES"),
        (["--tasks", " , "], "names no task; expected names with commas between them"),
        (["--text", "a.txt", "--shots", "3"], "--shots has no effect without --tasks"),
        (["--text", "a.txt", "--limit", "3"], "--limit has no effect without --tasks"),
        (["--text", "a.txt", "--out", "b"], "--out has no effect without --tasks"),
        (["--text", "a.txt", "--include", "b"], "--include has no effect without --tasks"),
        (["--tasks", "choose", "--context-length", "9"], "--context-length has no effect without --text"),
        (["--tasks", "choose", "--text-column", "x"], "--text-column has no effect without --text"),
        (["--tasks", "chose"], "did you mean 'choose'"),
        (["--tasks", "choose", "--dtype", "int8"], "--dtype 'int8': expected one of bfloat16"),
        (["--tasks", "choose", "--device", "tpu9"], "--device 'tpu9' cannot be used here"),
        (["--tasks", "choose", "--out", "/dev/null/x"], "cannot make the folder /dev/null"),
        (["--tasks", "choose", "--out", "."], "cannot write .; give another file by --out"),
    ],
)
def test_mistakes_are_one_message(student: Path, tasks: Path, options: list[str], message: str) -> None:
    include = ["--include", str(tasks)] if "--tasks" in options and "--text" not in options else []
    result = CliRunner().invoke(app, [str(student), *options, *include])
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in " ".join(result.stderr.split())
    assert isinstance(result.exception, SystemExit)


def test_a_model_that_is_missing_is_told(tasks: Path) -> None:
    result = evaluate("./nowhere", tasks)
    assert result.exit_code == 2
    assert "model: there is no model folder ./nowhere" in result.stderr


def test_help_and_other_commands_do_not_load_lm_eval() -> None:
    code = "import sys; import xtoken.cli, xtoken.evaluation.tasks; sys.exit('lm_eval' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    code = "import sys; import xtoken.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
