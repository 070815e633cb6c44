"""A made-up study's folder, written as `xtoken study` writes one: for tests of the report, and to look at by eye.

`python -m tests.report.study_folders FOLDER` writes the large one: 40 methods, two pairs, five seeds.
"""

from __future__ import annotations

import csv
import json
import math
import random
import statistics
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

# The 97.5 % quantile of Student's t, by degrees of freedom.
T975 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776}
MEASURES = {
    "exact_answers": ("share", "higher"),
    "bits_per_byte": ("bits per byte", "lower"),
    "bits_per_byte/numerals": ("bits per byte", "lower"),
    "bits_per_byte/words": ("bits per byte", "lower"),
    "teacher_kl": ("nats", "lower"),
    "teacher_kl/numerals": ("nats", "lower"),
    "answer_kl": ("nats", "lower"),
}
SMALL = ("ce", "gold", "p-kl", "path-kl")
LARGE = ("ce", "sequence", "uld", "gold", "strict", "alm", "partition", "p-kl", "p-kl-learned", "p-kl-mean", "h-kl",
         "path-kl", "same")  # fmt: skip
WEIGHTS = ("weight 0.1", "weight 0.3", "weight 1")
EQUAL = "equal gradient"


@dataclass(frozen=True)
class MadeUp:
    """What the study holds."""

    methods: Sequence[str] = SMALL
    variants: Sequence[str] = (*WEIGHTS, EQUAL)
    varied: Sequence[str] = ("gold", "p-kl")
    pairs: Sequence[str] = ("splits-digits", "packs-digits")
    seeds: Sequence[int] = (0, 1, 2)
    rates: Sequence[float] = (1e-3, 2e-3, 4e-3)
    measures: Sequence[str] = tuple(MEASURES)
    failed: int = 0
    labels: dict[str, str] = field(default_factory=lambda: {"ce": "cross-entropy alone"})


def write_study(folder: Path, made: MadeUp | None = None) -> Path:
    """Writes the whole folder and returns it."""
    made = made or MadeUp()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "study.yaml").write_text(yaml.safe_dump(_settings(made), sort_keys=False), encoding="utf-8")
    cells = list(_cells(made))
    for number, cell in enumerate(cells):
        name = f"{cell['method']} @ {cell['variant']}" if cell["variant"] else cell["method"]
        place = folder / "cells" / cell["pair"].replace("/", "-") / name.replace("/", "-")
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number:08x}.json").write_text(json.dumps(cell), encoding="utf-8")
    done = [cell for cell in cells if cell["status"] == "done"]
    _write(folder / "results.csv", _results(done))
    summaries = list(_summaries(done, made))
    _write(folder / "summary.csv", summaries)
    comparisons = list(_comparisons(done, made))
    _write(folder / "comparisons.csv", comparisons)
    _write(folder / "sweep.csv", _sweep(cells, made))
    (folder / "statistics.json").write_text(json.dumps({"sentence": f"{len(comparisons)} comparisons, at 95 %."}))
    (folder / "answers.json").write_text(json.dumps(_answers(comparisons, made)), encoding="utf-8")
    (folder / "references.json").write_text(json.dumps(_references(made)), encoding="utf-8")
    (folder / "machine.json").write_text(json.dumps(_machine(len(cells))), encoding="utf-8")
    return folder


def _settings(made: MadeUp) -> dict[str, Any]:
    return {
        "name": "made-up",
        "base": {"optim": {"steps": 300, "batch_size": 8}},
        "pairs": {pair: {"student": "s", "models": {"main": "t"}} for pair in made.pairs},
        "methods": {method: {} for method in made.methods},
        "labels": made.labels,
        "variants": [{"name": v, "set": {"loss": {"kd_weight": _weight(v)}}, "methods": list(made.varied)}
                     for v in made.variants],
        "seeds": list(made.seeds),
        "sweep": {"key": "optim.learning_rate", "values": list(made.rates), "seeds": [100],
                  "choose_by": "bits_per_byte"},
        "baselines": list(made.methods[:2] if "gold" not in made.methods else ("ce", "gold")),
    }  # fmt: skip


def _weight(variant: str) -> float | str:
    last = variant.split()[-1]
    return float(last) if last.replace(".", "").isdigit() else "gradient"


def _cells(made: MadeUp) -> Iterable[dict[str, Any]]:
    names = [(m, None) for m in made.methods] + [(m, v) for m in made.varied for v in made.variants]
    failures = made.failed
    for pair in made.pairs:
        for method, variant in names:
            rates = [(rate, 100, "sweep") for rate in made.rates] if variant is None else []
            for rate, seed, stage in [*rates, *((2e-3, seed, "main") for seed in made.seeds)]:
                cell = _cell(made, pair, method, variant, rate, seed, stage)
                if failures and stage == "main" and method not in ("ce", "gold"):
                    failures -= 1
                    cell |= {"status": "failed", "error": "step 17: the loss is not finite", "measures": {}}
                yield cell


def _cell(made: MadeUp, pair: str, method: str, variant: str | None, rate: float, seed: int, stage: str) -> Any:
    draw = random.Random(f"{pair} {method} {variant} {rate} {seed}")
    own = random.Random(f"{pair} {method} {variant}")
    skill = own.uniform(0.2, 0.9) - 0.2 * abs(math.log2(rate / 2e-3))
    skills = {name: skill + own.uniform(-0.2, 0.1) for name in made.measures}
    values = {
        name: max(0.0, (skills[name] if name == "exact_answers" else 2 - skills[name]) + draw.gauss(0, 0.03)) * scale
        for name, scale in zip(made.measures, (1, 0.5, 0.8, 0.6, 0.4, 0.7, 1.2), strict=False)
    }
    return {
        "pair": pair, "method": method, "variant": variant, "seed": seed, "stage": stage, "settings": {},
        "learning_rate": rate, "status": "done", "error": None,
        "measures": {"bits_per_byte": values["bits_per_byte"]} if stage == "sweep" else values,
        "seconds": draw.uniform(20, 60), "cpu_seconds": 30.0, "log": [{"step": 1, "ce": 3.0}] * 100,
    }  # fmt: skip


def _results(cells: Iterable[dict[str, Any]]) -> Iterable[dict[str, Any]]:
    for cell in cells:
        for measure, value in cell["measures"].items():
            columns = ("pair", "method", "variant", "stage", "seed", "learning_rate", "seconds")
            yield {**{c: cell[c] for c in columns}, "measure": measure, "value": value}


def _by_seed(cells: Iterable[dict[str, Any]]) -> dict[tuple[str, str, str | None], dict[int, dict[str, float]]]:
    found: dict[tuple[str, str, str | None], dict[int, dict[str, float]]] = {}
    for cell in cells:
        if cell["stage"] == "main":
            key = (cell["pair"], cell["method"], cell["variant"])
            found.setdefault(key, {})[cell["seed"]] = cell["measures"]
    return found


def _interval(values: Sequence[float]) -> tuple[float, float | None, float | None]:
    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, None, None
    half = T975[len(values) - 1] * statistics.stdev(values) / math.sqrt(len(values))
    return mean, mean - half, mean + half


def _summaries(cells: Iterable[dict[str, Any]], made: MadeUp) -> Iterable[dict[str, Any]]:
    for (pair, method, variant), seeds in _by_seed(cells).items():
        for measure in made.measures:
            unit, direction = MEASURES[measure]
            mean, low, high = _interval([values[measure] for values in seeds.values()])
            yield {"pair": pair, "method": method, "variant": variant, "measure": measure, "unit": unit,
                   "direction": direction, "seeds": len(seeds), "mean": mean, "low": low, "high": high}  # fmt: skip


def _comparisons(cells: Sequence[dict[str, Any]], made: MadeUp) -> Iterable[dict[str, Any]]:
    found = _by_seed(cells)
    for (pair, method, variant), seeds in found.items():
        for baseline in _settings(made)["baselines"]:
            if method == baseline and variant is None:
                continue
            for measure in made.measures:
                base = found[pair, baseline, None]
                both = [seed for seed in seeds if seed in base]
                difference, low, high = _interval([seeds[s][measure] - base[s][measure] for s in both])
                sign = -1 if MEASURES[measure][1] == "lower" else 1
                ends = sorted(sign * end for end in (low, high) if end is not None)
                verdict = "undecided" if not ends or ends[0] <= 0 <= ends[1] else "better" if ends[0] > 0 else "worse"
                yield {"pair": pair, "measure": measure, "method": method, "variant": variant, "baseline": baseline,
                       "seeds": len(both), "difference": difference, "low": low, "high": high,
                       "improvement_low": ends[0] if ends else None, "improvement_high": ends[1] if ends else None,
                       "verdict": verdict, "sentence": f"{method} is {verdict} against {baseline}"}  # fmt: skip


def _sweep(cells: Iterable[dict[str, Any]], made: MadeUp) -> Iterable[dict[str, Any]]:
    for cell in cells:
        if cell["stage"] == "sweep":
            measured = cell["measures"]["bits_per_byte"]
            yield {"pair": cell["pair"], "method": cell["method"], "value": cell["learning_rate"],
                   "measure": "bits_per_byte", "seeds": 1, "mean": measured,
                   "chosen": cell["learning_rate"] == 2e-3}  # fmt: skip


def _answers(comparisons: Sequence[dict[str, Any]], made: MadeUp) -> list[dict[str, Any]]:
    """Three questions, one of each verdict, from whatever was compared; the claims' own verdicts are as they fall."""
    verdicts = {"holds": "better", "fails": "worse", "undecided": "undecided"}
    questions = []
    for letter, (verdict, kind) in zip("abc", verdicts.items(), strict=True):
        chosen = [c for c in comparisons if c["verdict"] == kind][:2]
        questions.append(
            {
                "id": letter,
                "asks": f"A question that {verdict}: is the one better than the other where it matters?",
                "verdict": verdict,
                "claims": [
                    {
                        "sentence": f"On {c['pair']} {c['method']} against {c['baseline']} by {c['difference']:.3g} "
                        f"{c['measure']} (95 % interval, {c['seeds']} seeds).",
                        "verdict": verdict,
                        "pair": c["pair"],
                        "measure": c["measure"],
                        "left": c["method"],
                        "right": c["baseline"],
                        "difference": c["difference"],
                        "low": c["low"],
                        "high": c["high"],
                        "seeds": c["seeds"],
                    }
                    for c in chosen
                ],
            }
        )
    return questions


def _references(made: MadeUp) -> dict[str, Any]:
    values = {"bits_per_byte": 0.42, "exact_answers": 0.95}
    return {
        pair: {
            "models": {"main": {**values, "key": "0f"}},
            "student": {"bits_per_byte": 8.0, "exact_answers": 0.0},
            "audit": {"recommended_loss": "p-kl", "reason": "numerals of several digits are not in common"},
        }
        for pair in made.pairs
    }


def _machine(cells: int) -> dict[str, Any]:
    return {
        "commit": "0123456789abcdef", "dirty": False, "date": "2026-11-28T12:00:00+00:00", "cpu": "A made-up CPU",
        "cores": 2, "gpu": None, "python": "3.11.7", "torch": "2.13.0", "transformers": "5.23.0",
        "seconds": {"wall": 3000.0, "cpu": 5800.0}, "jobs": 2, "quick": False,
        "cells": {"planned": cells, "done": cells, "failed": 0},
    }  # fmt: skip


def _write(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    rows = list(rows)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]) if rows else ["pair"])
        writer.writeheader()
        writer.writerows(rows)


def large() -> MadeUp:
    """As many methods as the study of the issue has: 13 and the variants of most of them."""
    varied = ("uld", "gold", "strict", "p-kl", "h-kl", "path-kl", "alm")
    return MadeUp(methods=LARGE, varied=varied, seeds=(0, 1, 2, 3, 4), failed=3)


if __name__ == "__main__":
    print(write_study(Path(sys.argv[1]), large()))
