"""The estimates that stand in the shipped configs and in the documentation, made anew from the dry run.

`python -m benchmarks.estimates` prints them; with `--write` they replace the lines in configs/. The models' sizes are
those of `benchmarks.published`, so that no model hub is needed.
"""

from __future__ import annotations

import re
import sys
import tempfile
from pathlib import Path

from benchmarks.published import model_folder
from xtoken.config import load_config
from xtoken.training.estimate import GB, Estimate, Plan, estimate

__all__ = ["CONFIGS", "comment", "estimate_of", "in_file", "main"]

# The paper's runs. A small model does not reach the utilisation that the time is estimated at.
CONFIGS = sorted((Path(__file__).resolve().parents[1] / "configs").glob("llama-*.yaml"))
_BLOCK = re.compile(r"^# Estimate: .*\n(?:#   .*\n)+", re.MULTILINE)


def estimate_of(file: Path) -> Estimate:
    """The dry run of a shipped config on H100s, one and eight."""
    config = load_config(file)
    with tempfile.TemporaryDirectory() as folder:
        for model in (config.student, *config.teachers):
            model.model = str(model_folder(Path(folder), str(model.model)))
        return estimate(config)


def comment(file: Path, found: Estimate) -> str:
    """The lines that stand in a config."""
    machine = found.machine
    head = (
        f"# Estimate: xtoken train configs/{file.name} --dry-run  (GPUs of {machine.memory / GB:g} GB, "
        f"{machine.flops / 1e12:,.0f} TFLOP/s at {machine.utilisation:.0%})\n"
    )
    return head + "".join(f"#   {_line(plan)}\n" for plan in found.plans)


def _line(plan: Plan) -> str:
    figures = f"{plan.peak / GB:.1f} GB each, {plan.tokens_per_second:,.0f} tokens/s, {plan.hours:,.0f} hours"
    return f"{plan.name + ':':13} {figures}"


def in_file(file: Path) -> str:
    """The lines that stand there; empty where there are none."""
    found = _BLOCK.search(file.read_text(encoding="utf-8"))
    return found[0] if found else ""


def _write(file: Path, lines: str) -> None:
    """Replaces the lines, or puts them after the comment that a config opens with."""
    text = file.read_text(encoding="utf-8")
    if _BLOCK.search(text):
        text = _BLOCK.sub(lambda _: lines, text)
    else:
        opening = re.match(r"(?:#.*\n)*", text)
        end = opening.end() if opening else 0
        text = text[:end] + lines + text[end:]
    file.write_text(text, encoding="utf-8")


def main() -> None:
    """Prints the table of the documentation and the lines of the configs, and writes these with `--write`."""
    found = {file: estimate_of(file) for file in CONFIGS}
    print("| config | GFLOP a token | layout | GB on each GPU | tokens/s | hours | GPU hours |")
    print("|---|---|---|---|---|---|---|")
    for file, one in found.items():
        for n, plan in enumerate(one.plans):
            name = f"`{file.name}` | {one.flops_per_token / 1e9:.1f}" if n == 0 else " | "
            figures = (
                f"{plan.peak / GB:.1f} | {plan.tokens_per_second:,.0f} | {plan.hours:,.0f} | {plan.gpu_hours:,.0f}"
            )
            print(f"| {name} | {plan.name} | {figures} |")
    for file, one in found.items():
        lines = comment(file, one)
        print(f"\n{file.name}\n{lines}", end="")
        if "--write" in sys.argv[1:]:
            _write(file, lines)


if __name__ == "__main__":
    main()
