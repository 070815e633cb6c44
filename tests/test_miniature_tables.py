"""The tables of the README and of the miniature's page are those of the results in the repository."""

from __future__ import annotations

from pathlib import Path

import pytest
from benchmarks.miniature import BLOCKS, README, in_document, questions


@pytest.mark.parametrize(("document", "name"), list(BLOCKS), ids=lambda part: getattr(part, "name", str(part)))
def test_what_stands_there_is_what_the_results_say(document: Path, name: str) -> None:
    written = in_document(document, name)
    assert written == BLOCKS[document, name]()
    assert len(written.splitlines()) >= 1


def test_every_question_of_the_issue_is_in_the_readme() -> None:
    table = in_document(README, "questions")
    assert [line.split("|")[1].strip() for line in table.splitlines()[2:] if len(line.split("|")[1].strip()) == 1] == [
        *"abcdefghi",
        *"jk",
    ]
    assert table == questions()
