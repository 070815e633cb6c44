"""Whole runs, small: the student learns, is saved as a plain folder, and a run that is taken up again ends the same."""

from __future__ import annotations

import json
import logging
import shutil
import signal
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    TrainerCallback,
    TrainingArguments,
)

from training import tiny
from xtoken.config import parse_config
from xtoken.errors import DivergedError, XTokenError
from xtoken.training import LoadedModel, Side, XTokenTrainer, distil, models, prepare, run, texts_from_list
from xtoken.training.arguments import check_arguments, trainer_arguments
from xtoken.training.callbacks import StopRequest, stop_on_interrupt
from xtoken.training.participants import gather

TEXTS = tiny.documents(60)


def settings(folder: Path | None = None, **changes: Any) -> dict[str, Any]:
    """A run of a second: changes go by section, `optim={"steps": 3}`."""
    raw: dict[str, Any] = {
        "teachers": [{}],
        "optim": {"steps": 6, "batch_size": 8, "micro_batch_size": 4, "learning_rate": 3e-3},
        "output": {"save_every": 2, "keep_checkpoints": 9},
    }
    if folder is not None:
        raw["output"]["folder"] = str(folder)
    for section, values in changes.items():
        raw[section] = {**raw.get(section, {}), **values} if isinstance(values, dict) else values
    return raw


def in_memory(config: dict[str, Any], learner: LoadedModel | None = None, **options: Any) -> Any:
    teachers = [tiny.teacher() for _ in config["teachers"]]
    options = {"texts": TEXTS, "quiet": True} | options
    return distil(config, student=learner or tiny.student(), teachers=teachers, **options)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def test_the_student_learns_the_text_and_the_teacher() -> None:
    result = in_memory(settings(optim={"steps": 60, "learning_rate": 5e-3}, loss={"kd_weight": 1.0}))
    first, last = result.log[0], result.log[-1]
    assert last["ce"] < 0.8 * first["ce"]
    kd_only = in_memory(settings(optim={"steps": 60}, loss={"kd_weight": 1.0, "ce_weight": 0.0}))
    assert kd_only.log[-1]["kd"] < 0.3 * kd_only.log[0]["kd"]
    assert (result.steps, result.interrupted, result.folder, result.checkpoint) == (60, False, None, None)


@pytest.mark.parametrize(
    ("teachers", "weight"),
    [(["path-kl"], 1.0), (["p-kl"], "dynamic"), (["path-kl", "p-kl"], "dynamic"), ([], "dynamic")],
)
def test_path_kl_is_weighed_as_it_is_and_others_dynamically(teachers: list[str], weight: float | str) -> None:
    config = parse_config({"teachers": [{"loss": loss} for loss in teachers]})
    found = gather(config, tiny.student(), [tiny.teacher() for _ in teachers], None)
    assert found.config.loss.kd_weight == weight


def test_path_kl_teaches_and_logs_its_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XTOKEN_CACHE", str(tmp_path / "cache"))
    config = settings(optim={"steps": 60}, teachers=[{"loss": "path-kl"}], loss={"ce_weight": 0.0})
    result = in_memory(config)
    assert result.log[-1]["kd"] < 0.3 * result.log[0]["kd"]
    assert any("node_kl" in key for key in result.log[-1])
    assert len(list((tmp_path / "cache" / "tries").iterdir())) == 1
    assert in_memory(config).log[-1]["kd"] == result.log[-1]["kd"]  # from the cached tries


@pytest.mark.parametrize(
    ("loss", "metric", "keeps_all"),
    [("strict", "uncovered_mass", False), ("alm", "kept_chunks", True), ("partition-kl", "rest_mass", False)],
)
def test_a_baseline_teaches_and_logs_its_parts(loss: str, metric: str, keeps_all: bool) -> None:
    config = settings(optim={"steps": 60}, teachers=[{"loss": loss}], loss={"ce_weight": 0.0, "kd_weight": 1.0})
    result = in_memory(config)
    first, last = result.log[0], result.log[-1]
    assert last["kd"] < 0.3 * first["kd"]
    assert 0 < last[metric] <= 1
    plain = in_memory(settings(optim={"steps": 1}))
    assert (first["kept_chunks"] == plain.log[0]["kept_chunks"]) == keeps_all
    assert 0.3 < first["kept_chunks"] <= plain.log[0]["kept_chunks"]
    assert result.teachers[0].loss == loss


def test_both_losses_fall_with_the_defaults_and_a_teacher_that_knows_the_text() -> None:
    teacher, config = tiny.taught(tiny.teacher()), settings(optim={"steps": 40})
    result = distil(config, student=tiny.student(), teachers=[teacher], texts=TEXTS, quiet=True)
    assert result.log[-1]["ce"] < 0.7 * result.log[0]["ce"]
    assert result.log[-1]["kd"] < 0.7 * result.log[0]["kd"]


def test_a_saved_student_loads_with_plain_transformers(tmp_path: Path) -> None:
    source = tiny.student_folder(tmp_path / "student")
    tiny.teacher_folder(tmp_path / "teacher")
    (tmp_path / "text.txt").write_text("\n".join(TEXTS))
    config = settings(
        tmp_path / "out",
        student={"model": str(source)},
        teachers=[{"model": str(tmp_path / "teacher")}],
        data={"files": [str(tmp_path / "text.txt")]},
    )
    result = distil(config, quiet=True)
    for folder in (tmp_path / "out", tmp_path / "out" / "checkpoint-6"):
        loaded = AutoModelForCausalLM.from_pretrained(folder)
        ids = torch.tensor([[0, 5, 6, 7]])
        assert torch.equal(loaded(ids).logits, result.student.eval()(ids).logits)
        for name in ("tokenizer.json", "tokenizer_config.json"):  # as they were, not as transformers would write them
            assert (folder / name).read_bytes() == (source / name).read_bytes()
        assert AutoTokenizer.from_pretrained(folder)("Ada has 123").input_ids[0] == 0
    assert not list(tmp_path.rglob("training_args.bin"))
    assert result.teachers[0].name == "teacher"


def test_the_resolved_config_is_saved_and_starts_the_same_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "xtoken"):
        result = in_memory(settings(tmp_path / "a"))
    (choice,) = result.teachers
    assert choice.loss == "p-kl"
    assert "digits-3" in choice.reason
    assert any("teaches by p-kl: " in record.message and "digits-3" in record.message for record in caplog.records)
    resolved = yaml.safe_load((tmp_path / "a" / "xtoken_config.yaml").read_text())
    assert resolved["teachers"][0]["loss"] == "p-kl"
    resolved["output"]["folder"] = str(tmp_path / "b")
    in_memory(resolved)
    a, b = weights(tmp_path / "a"), weights(tmp_path / "b")
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("stopped_at", [2, 3])
def test_a_run_that_goes_on_ends_as_the_unbroken_one(
    tmp_path: Path, stopped_at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    dropout = {"attention_dropout": 0.1}  # so that a wrong random state would show
    config = settings(tmp_path / "whole", optim={"steps": 12}, output={"save_every": 100})
    in_memory(config, tiny.student(**dropout))
    config["output"]["folder"] = str(tmp_path / "broken")

    def stop(self: StopRequest, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == stopped_at:
            self.asked = control.should_save = control.should_training_stop = True

    with monkeypatch.context() as patch:
        patch.setattr(StopRequest, "on_step_end", stop)
        first = in_memory(config, tiny.student(**dropout))
    assert (first.interrupted, first.steps, first.checkpoint.name) == (True, stopped_at, f"checkpoint-{stopped_at}")
    assert not (tmp_path / "broken" / "model.safetensors").exists()
    second = in_memory(config, tiny.student(seed=5, **dropout), resume=True)
    assert (second.interrupted, second.steps) == (False, 12)
    whole, broken = weights(tmp_path / "whole"), weights(tmp_path / "broken")
    assert all(torch.equal(whole[name], broken[name]) for name in whole)
    lines = [
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("whole", "broken")
    ]
    assert [line["step"] for line in lines[1]] == list(range(1, 13))
    assert [line["ce"] for line in lines[1]] == [line["ce"] for line in lines[0]]


def test_a_finished_run_that_is_resumed_trains_no_further(tmp_path: Path) -> None:
    config = settings(tmp_path / "out")
    in_memory(config)
    before = weights(tmp_path / "out")
    (tmp_path / "out" / "model.safetensors").unlink()
    again = in_memory(config, tiny.student(seed=5), resume=True)
    assert again.steps == 6
    assert all(torch.equal(value, before[name]) for name, value in weights(tmp_path / "out").items())


def test_a_longer_run_can_go_on_from_a_finished_one(tmp_path: Path) -> None:
    in_memory(settings(tmp_path / "out"))
    assert in_memory(settings(tmp_path / "out", optim={"steps": 8}), resume=True).steps == 8


def test_resume_without_a_checkpoint_begins(tmp_path: Path) -> None:
    assert in_memory(settings(tmp_path / "out"), resume=True).steps == 6


def test_a_half_written_checkpoint_is_passed_over(tmp_path: Path) -> None:
    in_memory(settings(tmp_path / "out"))
    (tmp_path / "out" / "checkpoint-6" / "trainer_state.json").unlink()
    assert in_memory(settings(tmp_path / "out", optim={"steps": 6}), resume=True).steps == 6
    assert len((tmp_path / "out" / "metrics.jsonl").read_text().splitlines()) == 6


def test_resume_under_other_settings_or_data_is_refused(tmp_path: Path) -> None:
    in_memory(settings(tmp_path / "out"))
    changed = settings(tmp_path / "out", optim={"learning_rate": 1e-3}, teachers=[{"weight": 2.0}])
    with pytest.raises(XTokenError) as error:
        in_memory(changed, resume=True)
    assert "optim.learning_rate: 0.003 then, 0.001 now" in str(error.value)
    assert "teachers.0.weight: 1.0 then, 2.0 now" in str(error.value)
    with pytest.raises(XTokenError, match="started on other data"):
        in_memory(settings(tmp_path / "out"), resume=True, texts=[*TEXTS, "one more"])


def test_an_output_folder_in_use_is_refused_until_told(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    in_memory(settings(folder))
    (folder / "notes.txt").write_text("mine")
    before = weights(folder)
    with pytest.raises(XTokenError, match=r"already holds a run or a model .* --resume, .* --overwrite"):
        in_memory(settings(folder))
    with pytest.raises(XTokenError, match="give one of them"):
        in_memory(settings(folder), resume=True, overwrite=True)
    with pytest.raises(XTokenError, match="no document"):  # a mistake elsewhere costs nothing of the old run
        in_memory(settings(folder), overwrite=True, texts=[])
    assert all(torch.equal(value, before[name]) for name, value in weights(folder).items())
    result = in_memory(settings(folder, optim={"steps": 2}), overwrite=True)
    assert (result.steps, (folder / "notes.txt").read_text()) == (2, "mine")
    assert [path.name for path in folder.glob("checkpoint-*")] == ["checkpoint-2"]


def test_resume_leaves_a_model_that_no_run_wrote(tmp_path: Path) -> None:
    folder = tiny.student_folder(tmp_path / "model", seed=7)
    before = (folder / "model.safetensors").read_bytes()
    with pytest.raises(XTokenError, match=r"--resume has nothing to go on with"):
        in_memory(settings(folder), resume=True)
    assert (folder / "model.safetensors").read_bytes() == before


def test_a_new_run_keeps_no_tokenizer_file_of_the_old_one(tmp_path: Path) -> None:
    source = tiny.student_folder(tmp_path / "student")
    (source / "chat_template.jinja").write_text("{{ messages }}")
    first = settings(tmp_path / "out", student={"model": str(source)}, teachers=[], optim={"steps": 1})
    distil(first, texts=TEXTS, quiet=True)
    assert (tmp_path / "out" / "chat_template.jinja").exists()
    (source / "chat_template.jinja").unlink()
    distil(first, texts=TEXTS, quiet=True, overwrite=True)
    assert not (tmp_path / "out" / "chat_template.jinja").exists()
    assert (tmp_path / "out" / "tokenizer.json").exists()


def broken_student() -> LoadedModel:
    """Its predictions are NaN from the first step on."""
    learner = tiny.student()
    learner.model.model.norm.weight.data.fill_(float("nan"))
    return learner


def test_a_loss_that_is_not_finite_ends_the_run_before_the_student_is_changed(tmp_path: Path) -> None:
    """Whatever is logged; the batches, the examples and the student of the step are kept."""
    with pytest.raises(DivergedError, match=r"step 1: .*total of teacher 'teacher-0' .*last checkpoint is none"):
        in_memory(settings(tmp_path / "out", output={"log_every": 100}), broken_student())
    assert not (tmp_path / "out" / "model.safetensors").exists()
    failure = tmp_path / "out" / "failure-step-1"
    report = json.loads((failure / "report-0.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    assert report["step"] == 1
    assert report["micro_batch"] == 0
    assert "\ttotal" in report["not_finite"]
    assert {number for _, number in report["documents"]} <= set(range(len(TEXTS)))
    assert (failure / "student" / "model.safetensors").is_file()


def test_a_step_that_failed_can_be_seen_again(tmp_path: Path) -> None:
    """A weight that overflows on step 3: what was kept gives the same NaN, from the student the step found."""

    class Breaks(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
            if state.global_step == 2:
                model.model.layers[1].mlp.up_proj.weight.data[0, 0] = float("inf")

    data = prepare(texts_from_list(TEXTS), Side(tiny.packed(), 64), [])
    arguments = TrainingArguments(
        str(tmp_path), max_steps=4, save_strategy="no", report_to="none", disable_tqdm=True, dataloader_pin_memory=False
    )
    trainer = XTokenTrainer(tiny.student().model, args=arguments, train_dataset=data, callbacks=[Breaks()])
    with pytest.raises(DivergedError, match="step 3: the cross-entropy's total"):
        trainer.train()
    kept = load_file(tmp_path / "failure-step-3" / "batches-0.safetensors")
    student = AutoModelForCausalLM.from_pretrained(tmp_path / "failure-step-3" / "student")
    with torch.no_grad():
        logits = student(input_ids=kept["0/input_ids"], attention_mask=kept["0/attention_mask"]).logits
    assert not logits.isfinite().all()
    report = json.loads((tmp_path / "failure-step-3" / "report-0.json").read_text())
    for (_, number), row in zip(report["documents"], kept["0/input_ids"], strict=True):
        ids = data[number].ids
        assert row[: len(ids)].tolist() == ids.tolist()


def test_a_gradient_that_is_not_finite_ends_the_run_too(tmp_path: Path) -> None:
    student = tiny.student()
    student.model.model.layers[0].mlp.up_proj.weight.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(DivergedError, match="step 1: gradient is not finite"):
        in_memory(settings(tmp_path / "out"), student)


def test_the_first_ctrl_c_is_answered_at_once(capfd: pytest.CaptureFixture[str]) -> None:
    with stop_on_interrupt() as request:
        signal.raise_signal(signal.SIGINT)
        assert request.asked
        assert "stopping after this step, with a checkpoint; Ctrl-C again stops at once" in capfd.readouterr().err
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("is_tied", [True, False])
def test_resuming_says_nothing_of_tied_weights(tmp_path: Path, caplog: pytest.LogCaptureFixture, is_tied: bool) -> None:
    from safetensors.torch import save_file

    config = settings(tmp_path / "out")
    in_memory(config, tiny.student(tie_word_embeddings=is_tied))
    if not is_tied:  # a weight that is missing in earnest is told
        file = tmp_path / "out" / "checkpoint-6" / "model.safetensors"
        kept = {name: value for name, value in load_file(file).items() if name != "lm_head.weight"}
        save_file(kept, file, metadata={"format": "pt"})
    logger = logging.getLogger("transformers.trainer")
    logger.addHandler(caplog.handler)
    try:
        in_memory(config, tiny.student(tie_word_embeddings=is_tied), resume=True)
    finally:
        logger.removeHandler(caplog.handler)
    assert any("lm_head.weight" in message for message in caplog.messages) != is_tied


def test_by_default_a_document_is_a_micro_batch(tmp_path: Path) -> None:
    config = parse_config({"optim": {"batch_size": 8}})
    arguments = trainer_arguments(config, tmp_path, saves=False, quiet=True)
    assert (arguments.per_device_train_batch_size, arguments.gradient_accumulation_steps) == (1, 8)


def test_processes_that_the_trainer_does_not_see_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")  # as a launcher sets it, but no process group comes of it here
    config = parse_config({"optim": {"batch_size": 8}})
    with pytest.raises(XTokenError, match=r"WORLD_SIZE 2, but the Trainer runs 1 process"):
        trainer_arguments(config, tmp_path, saves=False, quiet=True)
    with pytest.raises(XTokenError, match=r"optim.batch_size 7 does not divide among 2 processes"):
        check_arguments(parse_config({"optim": {"batch_size": 7}}))


def test_only_the_first_process_writes_into_the_folder(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("old")
    waited: list[bool] = []
    accelerator = SimpleNamespace(wait_for_everyone=lambda: waited.append((tmp_path / "config.json").exists()))
    other = SimpleNamespace(accelerator=accelerator, is_world_process_zero=lambda: False)
    nobody: Any = None
    run._Run(nobody, nobody, tmp_path, True).take_folder(other, overwrite=True)
    assert ([path.name for path in tmp_path.iterdir()], waited) == (["config.json"], [True, True])


def test_a_name_with_a_slash_may_be_a_folder_or_a_hub_id(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str, revision: str | None) -> None:
        raise XTokenError("the hub does not know it")

    monkeypatch.setattr(models.Vocabulary, "from_pretrained", refuse)
    with pytest.raises(XTokenError, match=r"^student: the hub does not know it$"):
        models.load_model("runs/typo", who="student")


def test_the_folder_of_a_model_is_never_the_output(tmp_path: Path) -> None:
    source = tiny.student_folder(tmp_path / "student")
    config = settings(source, student={"model": str(source)}, teachers=[])
    with pytest.raises(XTokenError, match="is the folder of a model of this run"):
        distil(config, texts=TEXTS, overwrite=True)
    assert (source / "model.safetensors").exists()


def test_long_documents_are_cut_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "xtoken"):
        result = in_memory(settings(data={"context_length": 12}))
    assert result.data.truncated == result.data.documents == len(TEXTS)
    assert f"{len(TEXTS)} documents longer than the context were cut, on every side at the same byte" in caplog.messages


def test_the_context_is_what_the_models_take() -> None:
    long = [" ".join(TEXTS)] * 8
    short_teacher = tiny.teacher(max_position_embeddings=32)
    result = distil(settings(), student=tiny.student(), teachers=[short_teacher], texts=long, quiet=True)
    assert max(result.data.teacher_tokens.values()) <= 8 * 32
    with pytest.raises(XTokenError, match=r"data.context_length is 200, but the student has 128 positions"):
        in_memory(settings(data={"context_length": 200}))
    with pytest.raises(XTokenError, match=r"teachers.0.context_length is 200, but teacher-0 has 128 positions"):
        in_memory(settings(teachers=[{"context_length": 200}]))


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        ({"loss": "gold", "top_k": 5}, "top_k has no effect on the loss 'gold'"),
        ({"loss": "p-kl", "ranks": 5}, r"ranks has no effect on the loss 'p-kl' .* it belongs to gold, h-kl, uld"),
        ({"loss": "same"}, "loss 'same' needs one tokenizer for both"),
        ({"loss": "path-kl", "merge": "chain"}, r"merge has no effect on the loss 'path-kl' .* every token of a chunk"),
        ({"loss": "path-kl", "top_k": 5}, r"top_k has no effect on the loss 'path-kl' .* belongs to p-kl, strict"),
        ({"loss": "strict", "merge": "chain"}, r"merge has no effect on the loss 'strict' .* single tokens"),
        ({"loss": "alm", "merge": "first"}, r"merge has no effect on the loss 'alm' .* whole chunks"),
        ({"loss": "partition-kl", "merge": "chain"}, "merge has no effect on the loss 'partition-kl'"),
        ({"loss": "partition-kl", "top_k": 5}, "top_k has no effect on the loss 'partition-kl'"),
        ({"loss": "strict", "likelihood_temperature": 5}, r"likelihood_temperature has no .* it belongs to alm"),
    ],
)
def test_a_setting_that_does_not_fit_the_loss_is_refused(teacher: dict[str, Any], message: str) -> None:
    with pytest.raises(XTokenError, match=message):
        in_memory(settings(teachers=[teacher]))


def test_batches_that_do_not_divide_are_refused() -> None:
    with pytest.raises(XTokenError, match=r"not a multiple of optim.micro_batch_size 3"):
        in_memory(settings(optim={"micro_batch_size": 3}))


def test_an_unknown_tracker_is_told() -> None:
    with pytest.raises(XTokenError, match=r"there is no tracker 'tensorbord'.*did you mean 'tensorboard'"):
        in_memory(settings(output={"trackers": ["tensorbord"]}))
    with pytest.raises(XTokenError, match="the tracker 'comet_ml' is not installed"):
        in_memory(settings(output={"trackers": ["comet_ml"]}))


def test_what_is_passed_twice_or_not_at_all_is_told() -> None:
    student, texts = tiny.student(), TEXTS
    with pytest.raises(XTokenError, match="there is no student"):
        distil(settings(teachers=[]), texts=texts)
    with pytest.raises(XTokenError, match=r"student\.model has no effect"):
        distil(settings(teachers=[], student={"model": "a"}), student=student, texts=texts)
    with pytest.raises(XTokenError, match="1 of the config's teachers name no model, and 0 loaded ones"):
        distil(settings(), student=student, texts=texts)
    with pytest.raises(XTokenError, match="there is no data"):
        distil(settings(teachers=[]), student=student)
    with pytest.raises(XTokenError, match="texts were passed"):
        distil(settings(teachers=[], data={"files": ["a.txt"]}), student=student, texts=texts)
    with pytest.raises(XTokenError, match=r"--resume and --overwrite have no effect without output.folder"):
        distil(settings(teachers=[]), student=student, texts=texts, resume=True)


def test_several_teachers_with_losses_of_their_own() -> None:
    config = settings(
        teachers=[
            {"name": "a", "loss": "p-kl", "merge": "mean", "top_k": 50, "weight": 0.5},
            {"name": "b", "loss": "h-kl", "temperature": 2.0, "weight": 0.3},
            {"name": "c", "weight": 0.2},
        ]
    )
    same = tiny.student(seed=9)
    result = distil(
        config, student=tiny.student(), teachers=[tiny.teacher(), tiny.teacher(2), same], texts=TEXTS, quiet=True
    )
    assert [choice.loss for choice in result.teachers] == ["p-kl", "h-kl", "same"]
    line = result.log[-1]
    expected = 0.5 * line["kd/a"] + 0.3 * line["kd/b"] + 0.2 * line["kd/c"]
    assert line["kd"] == pytest.approx(expected, rel=1e-4)


def test_models_without_a_pad_token_train_on_documents_of_any_length() -> None:
    learner, teacher = tiny.student(), tiny.teacher()
    assert learner.model.config.pad_token_id is teacher.model.config.pad_token_id is None
    assert learner.vocabulary.pad_id is teacher.vocabulary.pad_id is None
    texts = ["7", *TEXTS, "Bo 1 2 3 4 5 6 7 8 9" * 3]
    assert distil(settings(), student=learner, teachers=[teacher], texts=texts, quiet=True).steps == 6


def test_recomputed_activations_give_the_same_student() -> None:
    plain, recomputed = (in_memory(settings(optim={"gradient_checkpointing": on})) for on in (False, True))
    assert recomputed.log[-1]["ce"] == pytest.approx(plain.log[-1]["ce"], rel=1e-4)


def test_a_temperature_reaches_the_loss() -> None:
    warm, plain = (in_memory(settings(teachers=[{"temperature": t}], optim={"steps": 1})) for t in (2.0, 1.0))
    assert warm.log[0]["kd"] != pytest.approx(plain.log[0]["kd"], rel=1e-2)


def test_cross_entropy_alone_needs_no_teacher() -> None:
    result = in_memory(settings(teachers=[]))
    assert result.teachers == ()
    assert "kd" not in result.log[-1]


def test_w_is_built_once_and_kept(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_memory(settings())
    (saved,) = (cache / "projections").iterdir()
    monkeypatch.setattr("xtoken.training.objectives.build_projection", lambda *_: pytest.fail("built again"))
    in_memory(settings())
    monkeypatch.undo()
    monkeypatch.setenv("XTOKEN_CACHE", str(cache))
    saved.write_bytes(b"broken")
    in_memory(settings())  # says so and builds it again


def test_the_cache_is_where_the_variable_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("XTOKEN_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert run.cache_folder() == tmp_path / ".cache" / "xtoken"


SMALL = {"vocab_size": 440, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "pad_token_id": None}
LLAMA_LIKE = SMALL | {"intermediate_size": 64, "num_key_value_heads": 1, "max_position_embeddings": 128}
ARCHITECTURES = {
    "llama, untied": lambda: tiny.llama(440, tie_word_embeddings=False),
    "qwen2, tied": lambda: Qwen2ForCausalLM(Qwen2Config(**LLAMA_LIKE, tie_word_embeddings=True)),
    "qwen3, untied": lambda: Qwen3ForCausalLM(Qwen3Config(**LLAMA_LIKE, head_dim=16, tie_word_embeddings=False)),
    "gemma2, soft-capped": lambda: Gemma2ForCausalLM(
        Gemma2Config(**LLAMA_LIKE, head_dim=16, final_logit_softcapping=5.0, attn_implementation="eager")
    ),
    "gpt2, learnt positions": lambda: GPT2LMHeadModel(
        GPT2Config(vocab_size=440, n_embd=32, n_layer=2, n_head=2, n_positions=128, bos_token_id=0, eos_token_id=1)
    ),
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_any_causal_model_can_learn_and_teach(tmp_path: Path, name: str) -> None:
    torch.manual_seed(0)
    learner = LoadedModel(ARCHITECTURES[name](), tiny.packed())
    teacher = LoadedModel(ARCHITECTURES[name](), tiny.split())
    config = settings(tmp_path / "out", optim={"steps": 8, "batch_size": 4}, loss={"kd_weight": 0.1})
    result = distil(config, student=learner, teachers=[teacher], texts=TEXTS, quiet=True)
    assert result.log[-1]["ce"] < result.log[0]["ce"]
    loaded, ids = AutoModelForCausalLM.from_pretrained(tmp_path / "out"), torch.tensor([[0, 5, 6, 7]])
    assert torch.equal(loaded(ids).logits, result.student.eval()(ids).logits)
    shutil.rmtree(tmp_path / "out")


def test_a_run_without_a_folder_that_fails_leaves_what_reproduces_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(DivergedError) as failed:
        in_memory(settings(), broken_student())
    (folder,) = tmp_path.glob("xtoken-failure-*/failure-step-1")
    assert str(folder) in str(failed.value)
    assert (folder / "report-0.json").is_file()
    assert (folder / "student" / "model.safetensors").is_file()


def test_overwrite_takes_away_what_a_failure_left(tmp_path: Path) -> None:
    with pytest.raises(DivergedError):
        in_memory(settings(tmp_path / "out"), broken_student())
    in_memory(settings(tmp_path / "out"), overwrite=True)
    assert not list((tmp_path / "out").glob("failure-*"))


def test_another_precision_of_the_launcher_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    with pytest.raises(
        XTokenError, match=r"the launcher asks for mixed precision fp16, .* float32 \(optim.precision\)"
    ):
        in_memory(settings())


def test_merging_adapters_into_a_sharded_student_is_refused() -> None:
    config = parse_config({"student": {"lora": {"rank": 2}}})
    members = SimpleNamespace(config=config)
    for flags in ((True, False), (False, True)):
        trainer = SimpleNamespace(is_fsdp_enabled=flags[0], is_deepspeed_enabled=flags[1])
        with pytest.raises(XTokenError, match=r"set student.lora.save to adapter"):
            run._Run(members, None, None, True).check_saving(trainer)  # type: ignore[arg-type]
