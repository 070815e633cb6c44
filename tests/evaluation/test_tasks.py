"""Tasks through lm-eval: its figures are those worked out by hand, and a prompt is what training would make of it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from benchmarks.paper import TASKS
from datasets.exceptions import DatasetNotFoundError
from tokenizers import Tokenizer, processors

from evaluation.local_tasks import choices, write_tasks
from small_tokenizers import SMALL, small
from training import tiny
from xtoken.errors import XTokenError
from xtoken.evaluation import tasks as module
from xtoken.evaluation.tasks import evaluate_tasks, load_tasks
from xtoken.tokens import Vocabulary
from xtoken.training import LoadedModel

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "evaluation.md"
STOP, NEW_TOKENS = ".", 8


@pytest.fixture(autouse=True)
def _hermetic(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prepared documents stay in the test's own folder, and lm-eval's 14,000 tasks are indexed for slow tests alone."""
    import lm_eval.tasks

    if request.node.get_closest_marker("slow"):
        return
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    manager = partial(lm_eval.tasks.TaskManager, include_defaults=False)
    monkeypatch.setattr(lm_eval.tasks, "TaskManager", manager)


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    model = tiny.taught(tiny.student(max_position_embeddings=256))
    model.model.eval()
    return model


@pytest.fixture(scope="module")
def folder(loaded: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tasks; every other question of `write` has the model's own answer, and the others one it does not give."""
    own = [greedy(loaded, row["question"]) for row in choices()]
    rows = [
        {"question": row["question"], "answer": answer if n % 2 == 0 else f"{answer}?"}
        for n, (row, answer) in enumerate(zip(choices(), own, strict=True))
    ]
    return write_tasks(tmp_path_factory.mktemp("tasks") / "own", choices(), rows)


def ids_of(loaded: LoadedModel, text: str) -> list[int]:
    return [*loaded.vocabulary.prefix_ids, *loaded.vocabulary.encode(text).ids.tolist()]


@torch.no_grad()
def log_prob(loaded: LoadedModel, context: str, continuation: str) -> float:
    ids, first = ids_of(loaded, context + continuation), len(ids_of(loaded, context))
    log_probs = loaded.model(torch.tensor([ids])).logits[0].log_softmax(-1)
    return sum(float(log_probs[i - 1, ids[i]]) for i in range(first, len(ids)))


@torch.no_grad()
def greedy(loaded: LoadedModel, prompt: str) -> str:
    """The likeliest tokens one by one, up to the eos, the stop text or the most there may be."""
    ids = ids_of(loaded, prompt)
    start = len(ids)
    while len(ids) - start < NEW_TOKENS:
        ids.append(int(loaded.model(torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] == loaded.vocabulary.eos_id:
            break
    written = b"".join(loaded.vocabulary.tokens[i] for i in ids[start:] if i < loaded.vocabulary.size)
    return written.decode("utf-8", errors="replace").split(STOP)[0]


def test_a_choice_is_the_one_of_the_largest_log_probability(loaded: LoadedModel, folder: Path) -> None:
    (result,) = evaluate_tasks(loaded.model, loaded.vocabulary, load_tasks(["choose"], include=folder))
    right = right_by_length = 0
    for row in choices():
        scores = [log_prob(loaded, row["question"], choice) for choice in row["choices"]]
        right += scores.index(max(scores)) == row["label"]
        by_length = [score / len(choice) for score, choice in zip(scores, row["choices"], strict=True)]
        right_by_length += by_length.index(max(by_length)) == row["label"]
    assert 0 < right < len(choices())  # else nothing is tested
    found = {metric.label: metric.value for metric in result.metrics}
    assert found == pytest.approx({"acc": right / len(choices()), "acc_norm": right_by_length / len(choices())})
    assert (result.documents, result.shots, result.version) == (len(choices()), 0, "1.0")
    share = right / len(choices())
    stderr = (share * (1 - share) / (len(choices()) - 1)) ** 0.5
    assert result.metrics[0].stderr == pytest.approx(stderr)


@pytest.mark.parametrize("batch_size", [1, 4])
def test_an_answer_is_written_greedily_whatever_stands_beside_it(
    loaded: LoadedModel, folder: Path, batch_size: int
) -> None:
    tasks = load_tasks(["write"], include=folder)
    (result,) = evaluate_tasks(loaded.model, loaded.vocabulary, tasks, batch_size=batch_size)
    assert any(greedy(loaded, row["question"]) for row in choices())  # it says something
    assert [(m.name, m.filter) for m in result.metrics] == [("exact_match", "whole"), ("exact_match", "number")]
    assert result.metrics[0].value == 0.5


class Seen:
    """A model's inputs, as it gets them."""

    def __init__(self, model: Any) -> None:
        self.rows: list[list[int]] = []
        self.batches: list[int] = []
        self.handle = model.register_forward_pre_hook(self._note, with_kwargs=True)

    def _note(self, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        ids = args[0] if args else kwargs["input_ids"]
        self.rows += ids.tolist()
        self.batches.append(len(ids))


@pytest.fixture
def seen(loaded: LoadedModel) -> Iterator[Seen]:
    noted = Seen(loaded.model)
    yield noted
    noted.handle.remove()


@pytest.mark.parametrize("name", ["choose", "write"])
def test_so_many_sequences_as_asked_for_go_through_the_model_at_once(
    loaded: LoadedModel, folder: Path, seen: Seen, name: str
) -> None:
    evaluate_tasks(loaded.model, loaded.vocabulary, load_tasks([name], include=folder), batch_size=5)
    assert max(seen.batches) == 5


def test_what_a_task_prints_stays_out_of_stdout(
    loaded: LoadedModel, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import lm_eval

    original = lm_eval.evaluate

    def noisy(**how: Any) -> Any:
        print("a task's own noise")
        return original(**how)

    monkeypatch.setattr(lm_eval, "evaluate", noisy)
    evaluate_tasks(loaded.model, loaded.vocabulary, load_tasks(["choose"], include=folder, limit=1))
    out, err = capsys.readouterr()
    assert out == ""
    assert "a task's own noise" in err


@pytest.mark.parametrize("name", ["choose", "write"])
def test_a_prompt_begins_with_one_bos_and_ends_without_eos(
    loaded: LoadedModel, folder: Path, seen: Seen, name: str
) -> None:
    evaluate_tasks(loaded.model, loaded.vocabulary, load_tasks([name], shots=1, include=folder), batch_size=1)
    bos, eos = loaded.vocabulary.bos_id, loaded.vocabulary.eos_id
    prompts = [row for row in seen.rows if len(row) > 1]  # one token alone goes on with a cache
    assert prompts
    assert all(row[0] == bos and bos not in row[1:] for row in prompts)
    assert all(eos not in row for row in prompts)


def test_a_tokenizer_without_a_bos_of_its_own_gets_none(folder: Path) -> None:
    vocabulary = tiny.packed(bos=False)
    model = tiny.llama(vocabulary.size, max_position_embeddings=256).eval()
    noted = Seen(model)
    evaluate_tasks(model, vocabulary, load_tasks(["choose"], include=folder))
    assert vocabulary.bos_id is not None
    assert not any(vocabulary.bos_id in row[: len(row) // 2] for row in noted.rows)  # the rest may be padding


def test_an_eos_that_a_tokenizer_puts_behind_a_text_is_left_out(loaded: LoadedModel, folder: Path) -> None:
    """Else the tokens of a choice, which are those after the question's, would be counted from the wrong place."""
    tokenizer = Tokenizer.from_str(tiny.tokenizer_json(3, 420))
    template = {"single": "<s> $A </s>", "special_tokens": [("<s>", 0), ("</s>", 1)]}
    tokenizer.post_processor = processors.TemplateProcessing(**template)
    with_eos = Vocabulary.from_tokenizer(tokenizer)
    assert with_eos.suffix_ids == (1,)
    found = []
    for vocabulary in (with_eos, loaded.vocabulary):
        noted = Seen(loaded.model)
        result = evaluate_tasks(loaded.model, vocabulary, load_tasks(["choose"], include=folder))
        noted.handle.remove()
        found.append((noted.rows, result))  # the figures alone may agree by chance
    assert found[0] == found[1]


@pytest.mark.parametrize("name", SMALL)
def test_the_tokenizer_handed_over_cuts_as_ours_does(name: str) -> None:
    """Whatever its family; `<s>` in a text apart."""
    vocabulary = small(name).vocabulary
    if vocabulary.bos_id is None and vocabulary.eos_id is None:
        with pytest.raises(XTokenError, match="neither a bos nor an eos"):
            module._tokenizer(vocabulary)
        return
    handed = module._tokenizer(vocabulary)
    for text in ("Anna has 12 apples.\nHow many? 1,234", "Größe, 的 and 2019", "a"):
        expected = [*vocabulary.prefix_ids, *vocabulary.encode(text).ids.tolist()]
        assert handed(text).input_ids == expected
        assert handed.encode(text, add_special_tokens=False) == expected[len(vocabulary.prefix_ids) :]


def test_a_number_of_shots_puts_so_many_solved_examples_in_front(loaded: LoadedModel, folder: Path, seen: Seen) -> None:
    (result,) = evaluate_tasks(loaded.model, loaded.vocabulary, load_tasks(["choose"], shots=2, include=folder))
    assert result.shots == 2
    text = b"".join(loaded.vocabulary.tokens[i] for i in seen.rows[0] if i < loaded.vocabulary.size).decode()
    assert text.count(" more:") == 3


def test_the_same_examples_are_drawn_each_time(loaded: LoadedModel, folder: Path) -> None:
    texts = []
    for _ in range(2):
        noted = Seen(loaded.model)
        evaluate_tasks(loaded.model, loaded.vocabulary, load_tasks(["choose"], shots=1, include=folder))
        noted.handle.remove()
        texts.append(noted.rows)
    assert texts[0] == texts[1]


def test_a_group_has_its_own_figure_and_those_of_its_tasks(loaded: LoadedModel, folder: Path) -> None:
    group, write = evaluate_tasks(
        loaded.model, loaded.vocabulary, load_tasks(["both_kinds", "write"], include=folder, limit=4)
    )
    assert (group.task, group.version, group.dataset, write.task) == ("both_kinds", "2.0", None, "write")
    (part,) = group.parts
    assert (part.task, part.documents, group.documents, write.documents) == ("choose", 4, 4, 4)
    assert group.metrics[0] == part.metrics[0]
    assert {group.limit, part.limit, write.limit} == {4}


def test_prompts_that_are_cut_are_counted(loaded: LoadedModel, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    short = tiny.llama(loaded.vocabulary.size, max_position_embeddings=24).eval()
    evaluate_tasks(short, loaded.vocabulary, load_tasks(["choose"], shots=3, include=folder))
    (message,) = [record.getMessage() for record in caplog.records if record.name.startswith("xtoken")]
    assert message.startswith(f"at least {3 * len(choices())} prompts were longer than the model's positions")
    assert not [record for record in caplog.records if "Combined length" in record.getMessage()]


def test_prompts_that_are_cut_before_an_answer_are_told_of(
    loaded: LoadedModel, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The harness tells of a batch of them once."""
    short = tiny.llama(loaded.vocabulary.size, max_position_embeddings=24).eval()
    evaluate_tasks(short, loaded.vocabulary, load_tasks(["write"], shots=3, include=folder), batch_size=4)
    (message,) = [record.getMessage() for record in caplog.records if record.name.startswith("xtoken")]
    assert re.match(r"at least [1-6] prompts were longer", message)
    assert not [record for record in caplog.records if "Left truncation" in record.getMessage()]


def test_no_room_to_write_is_told(loaded: LoadedModel, folder: Path) -> None:
    short = tiny.llama(loaded.vocabulary.size, max_position_embeddings=8).eval()
    with pytest.raises(XTokenError, match="'write' generates up to 8 tokens, and the model has 8 positions"):
        evaluate_tasks(short, loaded.vocabulary, load_tasks(["write"], include=folder))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["chose"], r"no task 'chose' \(did you mean 'choose'.* or give a folder of your own tasks by --include"),
        (["zzzz"], r"no task 'zzzz' in lm-eval or .*own; list them with `lm-eval ls tasks`"),
        (["choose", "both_kinds"], "the task 'choose' is asked for twice, once by 'both_kinds'"),
        (["write", "write"], "the task 'write' is asked for twice"),
    ],
)
def test_a_mistake_in_a_name_is_told(folder: Path, names: list[str], message: str) -> None:
    with pytest.raises(XTokenError, match=message):
        load_tasks(names, include=folder)


def test_a_folder_without_tasks_is_told(tmp_path: Path) -> None:
    with pytest.raises(XTokenError, match="there is no task file"):
        load_tasks(["choose"], include=tmp_path)
    with pytest.raises(XTokenError, match="there is no such folder"):
        load_tasks(["choose"], include=tmp_path / "nowhere")


def test_lm_eval_that_is_missing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(XTokenError, match=r"pip install 'xtoken\[eval\]'"):
        load_tasks(["choose"])


def test_several_processes_are_refused(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(XTokenError, match="without a launcher"):
        load_tasks(["choose"], include=folder)


def test_shots_that_a_task_does_not_take_are_told(folder: Path, tmp_path: Path) -> None:
    fixed = write_tasks(tmp_path / "fixed", choices(), [])
    (fixed / "choose.yaml").write_text((folder / "choose.yaml").read_text() + "num_fewshot: 0\n")
    with pytest.raises(XTokenError, match="--shots 3 has no effect on the task 'choose'"):
        load_tasks(["choose"], shots=3, include=fixed)
    load_tasks(["choose"], shots=0, include=fixed)


def test_a_data_file_that_is_missing_is_named(folder: Path, tmp_path: Path) -> None:
    broken = write_tasks(tmp_path / "broken", choices(), [])
    (broken / "choose.jsonl").unlink()
    with pytest.raises(XTokenError, match=r"cannot load the task 'choose': .*choose\.jsonl"):
        load_tasks(["choose"], include=broken)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            DatasetNotFoundError("Dataset 'a/b' is a gated dataset on the Hub. Visit"),
            r"Ask for access .*\(hf auth login\)",
        ),
        (DatasetNotFoundError("Dataset 'a/b' doesn't exist"), "from the hub: run once with a network"),
        (ConnectionError("Couldn't reach 'a/b' on the Hub"), "from the hub: run once with a network"),
        (ModuleNotFoundError("No module named 'math_verify'"), "'math_verify'. The task needs that package"),
    ],
)
def test_documents_that_cannot_be_had_are_told_with_the_way_out(
    folder: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, message: str
) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise error

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(XTokenError, match=f"cannot load the task 'write': .*{message}") as raised:
        load_tasks(["write"], include=folder)
    assert "\n" not in str(raised.value)


def test_the_working_directory_is_as_before(folder: Path) -> None:
    before = Path.cwd()
    load_tasks(["choose"], include=folder)
    assert Path.cwd() == before
    assert json.loads((folder / "choose.jsonl").read_text().splitlines()[0]) == choices()[0]


def test_the_task_file_in_the_documentation_is_one(loaded: LoadedModel, tmp_path: Path) -> None:
    (task,) = (block for block in re.findall(r"```yaml\n(.*?)```", DOCUMENT.read_text(), re.DOTALL) if "sums" in block)
    (row,) = re.findall(r"# (\{.*\})", task)
    (tmp_path / "sums.yaml").write_text(task)
    (tmp_path / "sums.jsonl").write_text(f"{row}\n{row}\n")
    (result,) = evaluate_tasks(loaded.model, loaded.vocabulary, load_tasks(["sums"], include=tmp_path))
    assert (result.documents, [metric.name for metric in result.metrics]) == (2, ["acc"])


@pytest.mark.slow
def test_the_papers_tasks_are_lm_evals(tmp_path: Path) -> None:
    names = [column.task for column in TASKS]
    assert set(names) <= set(module._manager(None).all_tasks)
    with pytest.raises(XTokenError, match=r"no task 'gsm8' \(did you mean '.*gsm8k'.* in lm-eval; list them"):
        load_tasks(["gsm8"])
