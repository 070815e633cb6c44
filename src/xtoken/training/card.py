"""The model card: what a student was made from and how it came out, as the README.md of its folder.

Type: `model_card`, a finished run in, Markdown with Hugging Face's metadata in front out. `with_tasks` adds what the
student scored in tasks, and is the same done once or twice. Laws: every figure is the
run's own; whatever a name holds is shown as it is and never read as Markdown, HTML or YAML; of a local path only the
last part is shown, since a card is there to be published.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from xtoken.config import RunConfig
from xtoken.evaluation.task_results import TaskResult
from xtoken.files import write_whole

if TYPE_CHECKING:
    from xtoken.training.run import RunResult

__all__ = ["CARD_FILE", "is_own_card", "model_card", "public_name", "public_settings", "with_tasks", "write_card"]

log = logging.getLogger(__name__)

CARD_FILE = "README.md"
# By this a card is known for ours, and replaced; without it, it is somebody's own text.
_MARK = "<!-- Written by xtoken, and replaced when the run goes on. Take this line out to keep your own changes. -->"
# What `xtoken eval` wrote stands between these, to be found and replaced.
_TASKS, _TASKS_END = "<!-- xtoken eval: tasks -->", "<!-- xtoken eval: end of tasks -->"
_AFTER_TASKS = "\n## How it was made\n"
# What stands for a model or a text that was handed over in memory.
_IN_MEMORY = "passed in memory"
_SPECIAL = re.compile(r"([\\`*_\[\]<>#|~&$])")

_XTOKEN_PAPER = """\
@misc{sreenivas2026xtoken,
  title  = {X-Token},
  author = {Sreenivas and others},
  year   = {2026},
  eprint = {2605.21699},
  archivePrefix = {arXiv}
}"""
_PROJECT = """\
@software{xtoken,
  title   = {xtoken: distil any large language model into any smaller one, whatever their tokenizers},
  author  = {{The xtoken authors}},
  version = {VERSION}
}"""
_X_TOKEN = "Sreenivas et al., X-Token, [arXiv:2605.21699](https://arxiv.org/abs/2605.21699)"
SOURCES = {
    "p-kl": _X_TOKEN,
    "h-kl": _X_TOKEN,
    "path-kl": "of xtoken itself",
    "gold": '"Unlocking On-Policy Distillation for Any Model Family", Hugging Face, 2025; as restated by X-Token',
    "uld": "Boizard et al., Towards Cross-Tokenizer Distillation: the Universal Logit Distillation Loss for LLMs, "
    "[arXiv:2402.12030](https://arxiv.org/abs/2402.12030)",
    "strict": "KL on common tokens alone, the baseline of [arXiv:2610.08448](https://arxiv.org/abs/2610.08448)",
    "alm": "Minixhofer et al., Universal Cross-Tokenizer Distillation via Approximate Likelihood Matching, "
    "[arXiv:2503.20083](https://arxiv.org/abs/2503.20083)",
    "partition-kl": "a draft in NVIDIA's NeMo-RL",
    "same": "Hinton et al., Distilling the Knowledge in a Neural Network, "
    "[arXiv:1503.02531](https://arxiv.org/abs/1503.02531)",
}


def write_card(folder: Path, content: str) -> None:
    """Writes the card into a run's folder, unless somebody's own README.md is there."""
    file = folder / CARD_FILE
    if file.exists() and not is_own_card(file):
        log.warning("%s is not xtoken's, so it stays and no model card is written", file)
        return
    write_whole(file, content)


def is_own_card(file: Path) -> bool:
    """Whether a file is a card that `write_card` may replace."""
    return file.is_file() and _MARK in file.read_text(encoding="utf-8", errors="replace")


def model_card(config: RunConfig, result: RunResult, versions: Mapping[str, str]) -> str:
    """The card of a finished run.

    Args:
        config: with every choice made.
        result: what came of it.
        versions: of the packages that made it, by name.
    """
    base = public_name(config.student.model)
    teachers = ", ".join(_md(public_name(t.model) if t.model else str(t.name)) for t in config.teachers)
    taught = f"distilled from {teachers}" if teachers else "trained by cross-entropy alone"
    sections = [
        f"---\n{_metadata(config)}\n---",
        _MARK,
        f"# {_md(_title(config, result))}",
        f"From {_md(base)}, {taught}, with xtoken {_md(versions['xtoken'])}.",
        _teachers(config, result),
        _data(config, result),
        _figures(result),
        _settings(config, versions),
        _citation(result, versions),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def with_tasks(card: str, results: Sequence[TaskResult]) -> str:
    """A card with what its model scored in tasks, in place of what stood there of them.

    Args:
        card: one of `model_card`.
        results: of each task, once.

    Returns:
        The card with a section of its own for them, and with Hugging Face's `model-index` in its metadata.
    """
    from huggingface_hub import ModelCard

    text = re.sub(f"\n{re.escape(_TASKS)}.*?{re.escape(_TASKS_END)}\n", "", card, flags=re.DOTALL)
    section = f"\n{_TASKS}\n{_task_section(results)}\n{_TASKS_END}\n"
    before, heading, after = text.partition(_AFTER_TASKS)
    made = ModelCard(f"{before}{section}{heading}{after}", ignore_metadata_errors=True)
    title = re.search(r"^# (.*)$", made.text, re.MULTILINE)
    name = re.sub(r"\\(.)", r"\1", title[1]) if title else "student"
    made.data["model_name"], made.data["eval_results"] = name, list(_index(results))
    return str(made)


def _task_section(results: Sequence[TaskResult]) -> str:
    rows = [
        [
            _md(result.task),
            _md(metric.label),
            _figure(metric.value),
            _figure(metric.stderr),
            f"{result.documents:,}",
            "" if result.shots is None else str(result.shots),
        ]
        for result in results
        for metric in result.metrics
    ]
    table = _table(["task", "metric", "value", "standard error", "documents", "shots"], rows)
    made_by = ", ".join(dict.fromkeys(f"lm-eval {_md(each.lm_eval)}, weights in {each.dtype}" for each in results))
    return f"## Tasks\n\n{table}\n\nMeasured by `xtoken eval` with {made_by}."


def _index(results: Sequence[TaskResult]) -> Iterator[Any]:
    """Entries of the model index. The hub joins those of one data set, so each names its task as well."""
    from huggingface_hub import EvalResult

    for result in results:
        source = next((each for each in (result, *result.parts) if each.dataset), result)
        on_hub = source.dataset is not None and "/" in source.dataset and not _is_local(source.dataset)
        for metric in result.metrics:
            if math.isfinite(metric.value):
                yield EvalResult(
                    task_type="text-generation",
                    dataset_type=str(source.dataset) if on_hub else result.task,
                    dataset_name=result.task,
                    dataset_config=result.dataset_config if on_hub else None,
                    metric_type=metric.name,
                    metric_name=f"{result.task}: {metric.label}",
                    metric_value=metric.value,
                )


def _metadata(config: RunConfig) -> str:
    """Hugging Face's front matter. The hub refuses a base model or a data set that is not one of its own."""
    from huggingface_hub import ModelCardData

    base, dataset = config.student.model, config.data.dataset
    data = ModelCardData(
        base_model=base if base and not _is_local(base) else None,
        datasets=[dataset] if dataset and not _is_local(dataset) else None,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["xtoken", "knowledge-distillation"],
    )
    return str(data.to_yaml())


def _title(config: RunConfig, result: RunResult) -> str:
    if config.output.push_to_hub:
        return config.output.push_to_hub.rpartition("/")[2]
    return result.folder.resolve().name if result.folder is not None else public_name(config.student.model)


def _teachers(config: RunConfig, result: RunResult) -> str:
    if not config.teachers:
        return ""
    rows = [
        [
            _md(choice.name),
            _md(public_name(t.model)),
            choice.loss,
            f"{t.weight:g}",
            f"{t.temperature:g}",
            _md(choice.reason),
        ]
        for t, choice in zip(config.teachers, result.teachers, strict=True)
    ]
    table = _table(["teacher", "model", "loss", "weight", "temperature", "why this loss"], rows)
    kd, ce = config.loss.kd_weight, config.loss.ce_weight
    return f"## Teachers\n\n{table}\n\nThe loss is {ce:g} x cross-entropy + {_weight(kd)} x the teachers' weighted sum."


def _weight(kd_weight: float | str) -> str:
    named = {"gradient": "a factor that lets both push equally hard"}
    return named.get(kd_weight, "a dynamic factor") if isinstance(kd_weight, str) else f"{kd_weight:g}"


def _data(config: RunConfig, result: RunResult) -> str:
    report = result.data
    names = [config.data.dataset] if config.data.dataset else config.data.files or []
    rows = [
        ["source", ", ".join(_md(public_name(name)) for name in names) or _IN_MEMORY],
        ["documents", f"{report.documents:,}"],
        ["bytes", f"{report.bytes:,}"],
        ["tokens of the student", f"{report.student_tokens:,}"],
        ["cut to the context", f"{report.truncated:,}"],
        ["skipped, without text", f"{report.empty:,}"],
        ["skipped, unusable", f"{report.unusable:,}"],
    ]
    return f"## Data\n\n{_table(['training text', ''], rows)}"


def _figures(result: RunResult) -> str:
    parts = ["## Figures", f"{result.steps:,} optimizer steps; the student is that of step {result.student_step:,}."]
    if result.log:
        first, last = result.log[0], result.log[-1]
        names = [name for name in first if (name in ("ce", "kd") or name.startswith("kd/")) and name in last]
        units = {"ce": "cross-entropy (`ce`), nats per token", "kd": "teachers' weighted sum (`kd`)"}
        rows = [[units.get(name) or _md(name), _figure(first[name]), _figure(last[name])] for name in names]
        parts.append(_table(["training loss", f"step {first['step']:,}", f"step {last['step']:,}"], rows))
    if result.held_out is not None and result.evaluations:
        text, shown = result.held_out.text, _evaluations(result)
        rows = [["all text", *(_figure(each.bits_per_byte) for _, each in shown)]]
        if all(each.numerals is not None for _, each in shown):
            rows.append(["numerals", *(_figure(each.numerals) for _, each in shown)])
        parts.append(_table(["held-out bits per byte", *(name for name, _ in shown)], rows))
        parts.append(
            f"Measured on {text.documents:,} held-out documents of {text.bytes:,} scored bytes; lower is better."
        )
    return "\n\n".join(parts)


def _evaluations(result: RunResult) -> list[tuple[str, Any]]:
    """Before training, of the student that was saved, and after the last step where that is another one."""
    by_step = {each.step: each for each in result.evaluations}
    last = result.evaluations[-1].step
    wanted = {"before": 0, f"this student (step {result.student_step:,})": result.student_step, "last step": last}
    if last == result.student_step:
        del wanted["last step"]
    return [(name, by_step[step]) for name, step in wanted.items() if step in by_step]


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def public_settings(config: RunConfig) -> dict[str, Any]:
    """Everything that decides the run, to be run again as it stands, fit to be published.

    Of local files and folders the last part is left, and where it was written is left out.
    """
    raw = config.model_dump(exclude_none=True, exclude={"output": {"folder", "push_to_hub", "private"}})
    if not (config.eval.files or config.eval.dataset):
        raw.pop("eval")
    for section in (raw["student"], *raw["teachers"]):
        if "model" in section:
            section["model"] = public_name(section["model"])
    for section in (raw["data"], raw.get("eval", {})):
        if "files" in section:
            section["files"] = [public_name(name) for name in section["files"]]
        if "dataset" in section:
            section["dataset"] = public_name(section["dataset"])
    return raw


def _settings(config: RunConfig, versions: Mapping[str, str]) -> str:
    settings = yaml.safe_dump(public_settings(config), sort_keys=False, allow_unicode=True)
    made_by = ", ".join(f"{_md(name)} {_md(version)}" for name, version in versions.items())
    return (
        "## How it was made\n\nThe settings of the run, as `config.yaml`. Of local files and folders only the names "
        "are given, and what was passed in memory is left out.\n\n"
        f"{_fenced(settings, 'yaml')}\n\n{_fenced('xtoken train config.yaml --set output.folder=FOLDER', 'bash')}\n\n"
        f"Made by {made_by}."
    )


def _citation(result: RunResult, versions: Mapping[str, str]) -> str:
    names = list(dict.fromkeys(choice.loss for choice in result.teachers))
    sources = "\n".join(f"- {name}: {SOURCES[name]}" for name in names)
    entries = _PROJECT.replace("VERSION", versions["xtoken"]) + "\n\n" + _XTOKEN_PAPER
    losses = f"The losses it was taught by:\n\n{sources}" if sources else ""
    return "\n\n".join(part for part in ("## How to cite", _fenced(entries, "bibtex"), losses) if part)


def _is_local(name: str) -> bool:
    return Path(name).expanduser().exists() or name.startswith((".", "/", "~"))


def public_name(name: str | None) -> str:
    """A hub id as it is, the last part of a local path, or that there is no name."""
    if name is None:
        return _IN_MEMORY
    return Path(name).expanduser().resolve().name if _is_local(name) else name


def _md(text: str) -> str:
    """Text as Markdown shows it word for word, also in a table."""
    printable = "".join(c if c.isprintable() else " " for c in text)
    return _SPECIAL.sub(r"\\\1", " ".join(printable.split()))


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _fenced(content: str, language: str) -> str:
    """A code block. In settings nothing a name holds ends it: YAML indents the lines of a value by four or more."""
    return f"```{language}\n{content.rstrip()}\n```"
