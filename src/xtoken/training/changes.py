"""What a run's data are made of, and what became different when they changed.

`ingredients` goes into the run's file; `what_changed` compares two of them and says so in sentences. Law: where the key
of the data is another, there is at least one sentence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from xtoken.tokens import Vocabulary
from xtoken.training.data import side_key

__all__ = ["ingredients", "what_changed"]

# A data set of many files that changed as a whole is not told file by file.
_MOST_LINES = 20
_UNKNOWN = "something that the run's file does not list: another release of xtoken may have written it"


def ingredients(
    made_of: Sequence[Mapping[str, Any]], student: Vocabulary, teachers: Mapping[str, Vocabulary]
) -> dict[str, Any]:
    """Plain JSON types that a later run is compared with.

    Args:
        made_of: of each corpus, as in `PreparedData.made_of`.
        student: its tokenizer.
        teachers: theirs, by name.
    """
    return {
        "corpora": [dict(one) for one in made_of],
        "tokenizers": {"student": side_key(student), "teachers": {name: side_key(v) for name, v in teachers.items()}},
    }


def what_changed(then: Mapping[str, Any] | None, now: Mapping[str, Any]) -> list[str]:
    """Sentences, the most important first.

    Args:
        then, now: what `ingredients` gave; None where a run's file does not hold it.
    """
    if then is None:
        return [_UNKNOWN]
    found = _tokenizers(then["tokenizers"], now["tokenizers"])
    if len(then["corpora"]) != len(now["corpora"]):
        found.append(f"there were {len(then['corpora'])} corpora, and there are {len(now['corpora'])}")
    for old, new in zip(then["corpora"], now["corpora"], strict=False):
        if old["format"] != new["format"]:
            found.append(f"xtoken makes examples in another way ({old['format']} then, {new['format']} now)")
        found += _source(old["source"], new["source"])
    if not found:
        return [_UNKNOWN]
    rest = len(found) - _MOST_LINES
    return found if rest <= 0 else [*found[:_MOST_LINES], f"and {rest} changes more"]


def _tokenizers(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    found = [] if then["student"] == now["student"] else ["the student's tokenizer differs"]
    for name in [name for name in now["teachers"] if then["teachers"].get(name) != now["teachers"][name]]:
        found.append(f"the tokenizer of the teacher {name} differs")
    return found


def _source(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Of one corpus: what it is made of, as in `TextSource.made_of`."""
    kinds = {"files": "files", "dataset": "a data set", "texts": "texts in memory"}
    was, is_ = (next((what for key, what in kinds.items() if key in one), "another source") for one in (then, now))
    if was != is_:
        return [f"the documents came from {was} then, and come from {is_} now"]
    if "files" in then:
        return _files(then["files"], now["files"])
    if then == now:
        return []
    if "texts" in then:
        return [f"the given texts differ ({then['texts']} then, {now['texts']} now)"]
    if then.get("dataset") != now.get("dataset"):
        return [f"the data set was {then.get('dataset')}, and is {now.get('dataset')}"]
    return [f"the data set {now.get('dataset')} changed (its fingerprint differs)"]


def _files(then: Sequence[Mapping[str, Any]], now: Sequence[Mapping[str, Any]]) -> list[str]:
    old, new = ({file["name"]: file for file in files} for files in (then, now))
    both = [(old[name], new[name]) for name in old if name in new]
    found = [_content(was, is_) for was, is_ in both if was["sha256"] != is_["sha256"]]
    gone, come = [name for name in old if name not in new], [name for name in new if name not in old]
    moved = {old[name]["sha256"] for name in gone} & {new[name]["sha256"] for name in come}
    found += [f"a file is gone: {name}" for name in gone if old[name]["sha256"] not in moved]
    found += [f"a file was added: {name}" for name in come if new[name]["sha256"] not in moved]
    if not found and [file["sha256"] for file in then] != [file["sha256"] for file in now]:
        found.append("the files come in another order, or another number of times")
    return found


def _content(then: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    sizes = "" if then["bytes"] == now["bytes"] else f": {then['bytes']:,} bytes then, {now['bytes']:,} now"
    return f"{now['name']} changed (its content differs{sizes})"
