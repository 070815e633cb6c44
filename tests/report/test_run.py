"""A run's report: figures are the run's own, what is missing is a sentence, and nobody's code is run."""

from __future__ import annotations

import json
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from report.runs import HOSTILE, made_run
from training import tiny
from xtoken.errors import XTokenError
from xtoken.evaluation.task_results import TASKS_FILE, Metric, TaskResult, weights_digest, write_results
from xtoken.report.aligned import AlignedText, Measured, Piece
from xtoken.report.run import Evaluation, RunFacts, class_differences, run_facts, worst_chunks
from xtoken.report.run_page import run_page, verdict

MOST_BYTES = 3_000_000


@pytest.fixture
def copy(run_folder: Path, tmp_path: Path) -> Path:
    """The run with its models and texts, to be changed."""
    shutil.copytree(run_folder.parent, tmp_path / "copy")
    path = tmp_path / "copy" / "out" / "xtoken_config.yaml"
    path.write_text(path.read_text().replace(str(run_folder.parent), str(tmp_path / "copy")))
    return path.parent


def reset(folder: Path, section: str, **changes: Any) -> None:
    """Changes the config of a finished run."""
    path = folder / "xtoken_config.yaml"
    config = yaml.safe_load(path.read_text())
    config[section].update(changes)
    path.write_text(yaml.safe_dump(config))


def test_the_figures_are_the_runs_own(facts: RunFacts, run_folder: Path) -> None:
    lines = [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]
    assert list(facts.metrics) == [line for line in lines if "ce" in line]
    scored = [line for line in lines if "eval/bits_per_byte" in line]
    assert [(e.step, e.bits_per_byte) for e in facts.evaluations] == [
        (x["step"], x["eval/bits_per_byte"]) for x in scored
    ]
    assert [(t.name, t.loss, t.weight) for t in facts.teachers] == [("big <b>", "p-kl", 1.0), ("kin", "same", 0.5)]
    assert facts.sample == "the first 7 held-out texts"
    assert facts.notes == ()
    for teacher in facts.teachers:
        assert teacher.notes == ()
        assert teacher.pair is not None
        assert len(teacher.texts) == 7
        assert sum(c.share for c in teacher.classes) == pytest.approx(1)


def test_the_page_shows_every_part_and_stays_small(facts: RunFacts) -> None:
    document = run_page(facts)
    for anchor in ("verdict", "curves", "differences", "alignments", "audit", "projection", "settings"):
        assert f'<section id="{anchor}"' in document
    assert len(document.encode()) < MOST_BYTES
    assert "<img" not in document
    assert document.count("<script>") == 2


def scored(task: str, value: float, **changes: Any) -> TaskResult:
    metrics = (Metric("acc", None, value, 0.01), Metric("exact_match", "strict-match", math.nan, None))
    plain = TaskResult(task, "1", 3, 1319, None, "float32", "/home/of/texts", None, "0.4.11", metrics)
    return replace(plain, **changes)


def test_what_the_student_scored_in_tasks_is_shown(copy: Path) -> None:
    group = scored("group <b>", 0.5, shots=None, parts=(scored("one of it", 0.25),))
    write_results(copy / TASKS_FILE, "out", weights_digest(copy), [scored("gsm8k", 0.4321), group])
    facts = run_facts(copy)
    assert [result.task for result in facts.tasks] == ["gsm8k", "group <b>"]
    document = run_page(facts)
    assert document.index('<section id="verdict"') < document.index('<section id="tasks"')
    for said in ("0.4321", "one of it", "0.2500", "exact_match (strict-match)", "1,319", "lm-eval 0.4.11",
                 "group &lt;b&gt;, acc", "± 0.0100 (standard error)"):  # fmt: skip
        assert said in document
    assert "/home/of/texts" not in document


def test_tasks_of_other_weights_are_not_shown(copy: Path) -> None:
    write_results(copy / TASKS_FILE, "out", "of another student", [scored("gsm8k", 0.4321)])
    facts = run_facts(copy)
    assert facts.tasks == ()
    assert "is of other weights than those in the folder" in facts.notes[-1]
    assert "0.4321" not in run_page(facts)


@pytest.mark.parametrize("content", ["{", "[]", '{"format": "xtoken-tasks", "version": 1}'])
def test_a_broken_file_of_tasks_is_told(copy: Path, content: str) -> None:
    (copy / TASKS_FILE).write_text(content)
    facts = run_facts(copy)
    assert facts.tasks == ()
    assert facts.notes[-1].startswith("What the student scored in tasks could not be read: ")


def test_a_bar_is_as_long_as_the_share_it_tells(facts: RunFacts) -> None:
    section = run_page(replace(facts, teachers=facts.teachers[:1])).split('<section id="differences"')[1]
    widths = [
        float(width) for width in re.findall(r'<rect class="bar" [^>]*width="([\d.]+)%"', section.split("</svg>")[0])
    ]
    assert widths == pytest.approx([100 * each.share for each in facts.teachers[0].classes], abs=0.01)


def test_without_tasks_there_is_no_section_of_them(facts: RunFacts) -> None:
    assert facts.tasks == ()
    assert 'id="tasks"' not in run_page(facts)


def test_the_pushes_of_the_terms_are_drawn_where_they_were_logged(facts: RunFacts) -> None:
    measured = ("Norms of the gradients", "Push of the teachers")
    assert not any(heading in run_page(facts) for heading in measured)
    names = ("gradient_norm/ce", "gradient_norm/kd", "gradient_norm/kd/kin", "push_ratio")
    lines = [{**line, **dict.fromkeys(names, 0.25 * (n + 1))} for n, line in enumerate(facts.metrics)]
    document = run_page(replace(facts, metrics=tuple(lines)))
    assert all(f"<h3>{heading}</h3>" in document for heading in measured)
    assert "kin: 0.2500 at 1" in document
    assert "teachers&#39; sum / cross-entropy: 0.2500 at 1" in document


def test_no_local_path_is_published(facts: RunFacts, run_folder: Path) -> None:
    assert str(run_folder.parent) not in run_page(facts)


def test_a_teacher_that_is_gone_leaves_the_rest_standing(copy: Path) -> None:
    shutil.rmtree(copy.parent / "big")
    facts = run_facts(copy)
    gone, there = facts.teachers
    assert gone.pair is None
    assert gone.texts == ()
    assert gone.notes[0].startswith("Its tokenizer could not be read: ")
    assert there.classes
    assert gone.notes[0].split(":")[0] in run_page(facts)


def test_a_teacher_without_weights_is_audited_and_not_measured(copy: Path) -> None:
    (copy.parent / "big" / "model.safetensors").unlink()
    teacher = run_facts(copy).teachers[0]
    assert teacher.pair is not None
    assert len(teacher.texts) == 7
    assert teacher.classes == ()
    assert teacher.worst == ()
    assert teacher.student_bits is None
    (note,) = teacher.notes
    assert note.startswith("The teacher's model could not be read, so nothing is measured: ")


def test_texts_that_are_gone_are_told(copy: Path) -> None:
    (copy.parent / "held_out.txt").unlink()
    facts = run_facts(copy)
    (note,) = facts.notes
    assert note.startswith("No texts were read: ")
    assert "--texts FILE" in note
    assert all(teacher.pair is not None and teacher.texts == () for teacher in facts.teachers)
    assert note.split(":")[0] in run_page(facts)


def test_without_held_out_text_the_training_documents_are_read(tmp_path: Path) -> None:
    facts = run_facts(made_run(tmp_path, eval={}), documents=3)
    assert facts.sample == "the first 3 training documents"
    assert facts.evaluations == ()
    assert verdict(facts).startswith("No held-out text was scored")
    assert all(len(teacher.texts) == 3 for teacher in facts.teachers)


def test_given_texts_come_first(copy: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("Ada has 12 pens.\n\n" + HOSTILE)
    facts = run_facts(copy, texts=tmp_path / "mine.txt")
    assert facts.sample == "the first 2 texts of mine.txt"
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(XTokenError, match="holds no text"):
        run_facts(copy, texts=tmp_path / "empty.txt")


def test_an_unfinished_run_shows_its_last_checkpoint_or_none(copy: Path) -> None:
    for file in ("config.json", "model.safetensors"):
        (copy / file).unlink()
    facts = run_facts(copy)
    assert facts.notes == (
        "The run was not finished and saved no student: its last checkpoint, checkpoint-4, is shown.",
    )
    assert facts.teachers[0].classes
    for checkpoint in copy.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    bare = run_facts(copy)
    assert bare.notes == ("The run was not finished and saved no student: nothing of the student is there.",)
    assert bare.teachers[0].pair is not None, "the tokenizers are those of the models it began with"
    assert bare.teachers[0].classes == ()
    run_page(bare)


def test_a_run_that_logged_nothing_yet_is_a_page(copy: Path) -> None:
    (copy / "metrics.jsonl").unlink()
    document = run_page(run_facts(copy))
    assert "no step was logged" in document
    (copy / "metrics.jsonl").write_text('{"step": 1, "ce": 2.0, "kd": null}\n{"step": 2, "ce": 1.')
    facts = run_facts(copy)
    assert [line["step"] for line in facts.metrics] == [1], "a line that was broken off is left out"
    run_page(facts)


def test_cross_entropy_alone_needs_no_teacher(tmp_path: Path) -> None:
    facts = run_facts(made_run(tmp_path, teachers=[]))
    document = run_page(facts)
    assert "trained by cross-entropy alone" in document
    assert '<section id="audit"' not in document


def test_conversations_are_not_read_and_that_is_told(copy: Path) -> None:
    reset(copy, "data", format="chat")
    path = copy / "xtoken_config.yaml"
    config = yaml.safe_load(path.read_text())
    del config["eval"]["files"]
    path.write_text(yaml.safe_dump(config))
    (note,) = run_facts(copy).notes
    assert "its documents are conversations" in note


def test_code_that_comes_with_a_model_is_not_run(copy: Path) -> None:
    config = json.loads((copy.parent / "big" / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M"}}
    (copy.parent / "big" / "config.json").write_text(json.dumps(config))
    (copy.parent / "big" / "code.py").write_text(f"open({str(copy / 'ran')!r}, 'w')")
    path = copy / "xtoken_config.yaml"
    trusting = yaml.safe_load(path.read_text())
    trusting["teachers"][0]["trust_remote_code"] = True
    path.write_text(yaml.safe_dump(trusting))
    teacher = run_facts(copy).teachers[0]
    assert not (copy / "ran").exists()
    assert "Python code of its own" in teacher.notes[0]


def test_a_learnt_w_is_the_one_shown(tmp_path: Path) -> None:
    teachers = [
        {"model": str(tiny.teacher_folder(tmp_path / "big")), "loss": "p-kl", "projection": {"learnable": True}}
    ]
    folder = made_run(tmp_path, teachers=teachers)
    (teacher,) = run_facts(folder).teachers
    assert teacher.pair is not None
    assert teacher.pair.projection.is_learnt
    (folder / "projection-big.safetensors").write_bytes(b"broken")
    (broken,) = run_facts(folder).teachers
    assert broken.pair is not None
    assert not broken.pair.projection.is_learnt
    assert broken.notes[0].startswith("The W shown is the one built by rule")


@pytest.mark.parametrize("name", ["xtoken_config.yaml", "xtoken_run.json"])
def test_a_folder_without_a_run_is_an_error(copy: Path, name: str) -> None:
    (copy / name).unlink()
    with pytest.raises(XTokenError, match=r"holds no run: expected the xtoken_config.yaml and xtoken_run.json"):
        run_facts(copy)


def test_a_broken_run_file_is_an_error(copy: Path) -> None:
    (copy / "xtoken_run.json").write_text("{")
    with pytest.raises(XTokenError, match=r"xtoken_run.json is not the JSON"):
        run_facts(copy)


@pytest.mark.parametrize(
    ("figures", "said"),
    [
        ([(0, 3.0), (2, 1.0), (4, 0.5)], "it needs fewer bits per byte of held-out text, 0.5000 after step 4, 3.0000"),
        ([(0, 3.0), (2, 0.5), (4, 1.0)], "After the last step it needs 1.0000; the best one was saved."),
        ([(0, 1.0), (2, 2.0)], "not get better: its lowest bits per byte of held-out text are 2.0000 after step 2, 1"),
        ([(0, 1.0), (2, 1.0)], "The student did not get better"),
        ([(0, 1.0), (2, None)], "The student needs 1.0000 bits per byte"),
        ([(0, None)], "No held-out text was scored"),
    ],
)  # fmt: skip
def test_the_verdict_says_what_the_figures_say(facts: RunFacts, figures: list[Any], said: str) -> None:
    changed = replace(facts, evaluations=tuple(Evaluation(step, value, None) for step, value in figures))
    assert said in verdict(changed)


def piece(text: str, kl: float, kind: str = "alphabetic") -> Piece:
    return Piece((text,), (text,), text, kind, len(text), False, Measured(kl, -kl, -kl, (), ()))


def test_the_worst_chunks_come_first_each_in_its_own_text() -> None:
    texts = [
        AlignedText((piece("a", 1.0), piece("b", 3.0), piece("c", 0.0))),
        AlignedText((piece("d", 2.0), Piece(("<s>",), (), "", "", 0, True), piece("1", 6.0, "digits-1"))),
    ]
    found = worst_chunks(texts, most=3)
    assert [(w.text, w.before, w.piece.text, w.after) for w in found] == [
        (1, "d", "1", ""),
        (0, "a", "b", "c"),
        (1, "", "d", "1"),
    ]
    classes = {c.kind: (c.chunks, c.kl, c.share) for c in class_differences(texts)}
    assert classes == {"digits-1": (1, 6.0, 0.5), "alphabetic": (4, 1.5, 0.5)}
