"""The commands of docs/reproduce.md, each with what it is estimated to take: `python -m benchmarks.reproduce`.

`--write` puts the table into the document; `--price` is the price of a GPU hour in USD. The hours are those that stand
in the configs, where `benchmarks.estimates` puts them; which of the losses a teacher has makes no difference to them.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

from benchmarks.estimates import in_file
from benchmarks.paper import CONFIGS, ROWS, TASKS, Row, command

__all__ = ["DOCUMENT", "PRICE", "gpu_hours", "in_document", "main", "table"]

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "reproduce.md"
# USD for an hour of one H100. Offers of 2026 range from 2 to 5 (www.mercatus-ai.com/blog/cloud-gpu-pricing, May 2026).
PRICE = 2.5
_HOURS = re.compile(r"1 GPU: .* ([\d,]+) hours")
_BLOCK = re.compile(r"(?<=<!-- rows -->\n).*?(?=<!-- end of rows -->)", re.DOTALL)


def table(price: float = PRICE) -> str:
    """A row of the paper, the figures to expect, GPU hours, cost and its command."""
    names = ", ".join(column.name for column in TASKS)
    lines = [f"| row | average | {names} | GPU hours | USD | command |", "|---" * 6 + "|"]
    return "\n".join([*lines, *(_line(row, price) for row in ROWS)]) + "\n"


def _line(row: Row, price: float) -> str:
    figures = f"{row.average:.2f} | {', '.join(f'{figure:.2f}' for figure in row.figures)}"
    if row.config is None:
        return f"| {row.label} | {figures} | 0 | 0 | (evaluation alone) |"
    hours = gpu_hours(row.config)
    cost = f"{round(price * hours, -2):,.0f}"  # the hours are not known better than that
    return f"| {row.label} | {figures} | {hours:,} | {cost} | `{command(row)}` |"


def gpu_hours(config: str) -> int:
    """What a config says it takes."""
    found = _HOURS.search(in_file(CONFIGS / f"{config}.yaml"))
    if found is None:
        raise ValueError(f"configs/{config}.yaml has no estimate: python -m benchmarks.estimates --write")
    return int(found[1].replace(",", ""))


def in_document() -> str:
    """The table that stands there."""
    found = _BLOCK.search(DOCUMENT.read_text(encoding="utf-8"))
    return found[0] if found else ""


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the table, and writes it into the document with `--write`."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reproduce", description=__doc__)
    parser.add_argument("--price", type=float, default=PRICE, help=f"USD for a GPU hour (default {PRICE:g})")
    parser.add_argument("--write", action="store_true", help="put the table into docs/reproduce.md")
    asked = parser.parse_args(arguments)
    made = table(asked.price)
    print(made, end="")
    if asked.write:
        text = DOCUMENT.read_text(encoding="utf-8")
        DOCUMENT.write_text(_BLOCK.sub(lambda _: made, text), encoding="utf-8")


if __name__ == "__main__":
    main()
