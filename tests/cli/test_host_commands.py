"""`xtoken audit`, `project` and `align`: what goes to stdout, what to stderr, and with which exit code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from small_tokenizers import gemma_json, packing_json, small, splitting_json, spm_bpe_model, wordpiece_json
from xtoken.alignment import align
from xtoken.cli import app
from xtoken.projection import Projection, build_projection

SOURCES = {
    "packing": packing_json,
    "splitting": splitting_json,
    "gemma": gemma_json,
    "wordpiece": wordpiece_json,
}


@pytest.fixture(scope="module")
def where(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one folder a tokenizer, and some texts."""
    root = tmp_path_factory.mktemp("tokenizers")
    for name, make in SOURCES.items():
        (root / name).mkdir()
        (root / name / "tokenizer.json").write_text(make(), encoding="utf-8")
    (root / "spm-bpe").mkdir()
    (root / "spm-bpe" / "tokenizer.model").write_bytes(spm_bpe_model())
    (root / "text.txt").write_bytes("Anna has 12 äpfel.\r\n的\n".encode())
    (root / "latin.txt").write_bytes("die Größe".encode("latin-1"))
    (root / "empty.txt").write_bytes(b"")
    return root


class Done:
    """What a command left behind."""

    def __init__(self, *arguments: object) -> None:
        result = CliRunner().invoke(app, [str(a) for a in arguments])
        self.code, self.out, self.err = result.exit_code, result.stdout, result.stderr
        self.error = None if isinstance(result.exception, SystemExit) else result.exception


def mistake(*arguments: object) -> str:
    """Runs a command that must fail as a mistake of its caller; gives back the one line it said, on stderr alone."""
    done = Done(*arguments)
    assert done.error is None, f"a traceback: {done.error!r}"
    assert done.code == 2
    assert done.out == ""
    assert done.err.startswith("error: ")
    assert done.err.count("\n") == 1
    assert "Traceback" not in done.err
    return done.err


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
        env={**os.environ, **environment},
    )


WATCHED = (
    "import sys\n"
    "from xtoken.cli import main\n"
    "sys.argv = ['xtoken', *{arguments!r}]\n"
    "try:\n    main()\nexcept SystemExit as e:\n    assert not e.code, e.code\n"
    "heavy = {{'torch', 'transformers', 'datasets', 'sentencepiece'}} & set(sys.modules)\n"
    "assert not heavy, heavy\n"
)


@pytest.mark.parametrize(
    "arguments", [["--help"], ["audit", "--help"], ["align", "--help"], ["--version"]], ids=" ".join
)
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    done = run(WATCHED.format(arguments=arguments))
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_an_audit_imports_no_torch(where: Path) -> None:
    done = run(WATCHED.format(arguments=["audit", str(where / "packing"), str(where / "splitting"), "--json"]))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["recommended_loss"] == "p-kl"


@pytest.mark.parametrize("help_option", ["--help", "-h"])
def test_help_lists_the_host_commands(help_option: str) -> None:
    done = Done(help_option)
    assert done.code == 0
    assert all(command in done.out for command in ("audit", "project", "align"))


# -- audit -------------------------------------------------------------------------------------------------------------


def test_audit_as_json_is_one_object_and_nothing_else(where: Path) -> None:
    done = Done("audit", where / "packing", where / "splitting", "--json")
    assert (done.code, done.err) == (0, "")
    assert done.out.count("\n") == 1
    report = json.loads(done.out)
    packing = small("packing")
    tens = [t for t in packing.table if t and t.strip().isdigit() and len(t.strip()) == 2 and t.isascii()]
    assert report["classes"]["digits-2"] == {"tokens": len(tens), "in_common": 0}
    assert (report["student_vocab"], report["teacher_vocab"]) == (len(packing.table), len(small("splitting").table))
    assert report["recommended_loss"] == "p-kl"
    assert isinstance(report["zero_rows"], dict)
    assert (report["student"], report["teacher"]) == ("packing", "splitting")


def row_of(shown: str, heading: str) -> list[str]:
    """The cells of a table's row."""
    line = next(line for line in shown.splitlines() if line.lstrip("│ ").startswith(heading))
    return [cell.strip() for cell in line.strip("│ ").split("│")]


@pytest.mark.parametrize("width", ["80", "100", "200"])
def test_audit_for_people_says_the_same(width: str, where: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a terminal of 80 columns too: the examples give way, never the counts."""
    monkeypatch.setenv("COLUMNS", width)
    report = json.loads(Done("audit", where / "packing", where / "splitting", "--json").out)
    done = Done("audit", where / "packing", where / "splitting")
    assert done.code == 0
    assert "Recommended loss: p-kl" in done.out
    for name, found in report["classes"].items():
        if found["tokens"]:
            share = f"{found['in_common'] / found['tokens']:.1%}"
            assert row_of(done.out, name)[:4] == [name, f"{found['tokens']:,}", f"{found['in_common']:,}", share]
    assert row_of(done.out, "equal bytes")[1] == "800"
    assert "counted as the paper does" in done.out
    table = [line for line in done.out.splitlines() if line.startswith(("│", "┃"))]
    assert max(map(len, table)) <= int(width)


@pytest.mark.parametrize("width", ["80", "200"])
def test_audit_weighs_by_a_corpus(width: str, where: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", width)
    corpus = ["--corpus", where / "text.txt"]
    classes = json.loads(Done("audit", where / "packing", where / "splitting", *corpus, "--json").out)["classes"]
    assert sum(c["usage"] for c in classes.values()) == pytest.approx(1)
    shown = row_of(Done("audit", where / "packing", where / "splitting", *corpus).out, "digits-2")
    digits = classes["digits-2"]
    assert shown[1:3] == [f"{digits['tokens']:,}", "0"]
    assert f"{digits['usage']:.2%}" in shown


def test_every_family_can_be_audited(where: Path) -> None:
    for student in (*SOURCES, "spm-bpe"):
        for teacher in (*SOURCES, "spm-bpe"):
            done = Done("audit", where / student, where / teacher)
            assert (done.code, done.error) == (0, None), (student, teacher)


# -- project -----------------------------------------------------------------------------------------------------------


def test_project_writes_a_file_that_loads_for_the_pair(where: Path, tmp_path: Path) -> None:
    target = tmp_path / "new" / "W.safetensors"
    done = Done("project", where / "packing", where / "splitting", "-o", target)
    assert (done.code, done.err) == (0, "")
    student, teacher = small("packing").vocabulary, small("splitting").vocabulary
    loaded, built = Projection.load(target, student, teacher), build_projection(student, teacher)
    assert loaded.values.tobytes() == built.values.tobytes()
    assert loaded.cols.tobytes() == built.cols.tobytes()
    assert f"{built.shape[0]:,} x {built.shape[1]:,}" in done.out
    assert str(target) in done.out


def test_project_names_its_file_as_it_is_written(where: Path, tmp_path: Path) -> None:
    """A path with brackets is no markup."""
    target = tmp_path / "[red]W[/red].safetensors"
    done = Done("project", where / "packing", where / "splitting", "-o", target)
    assert done.code == 0
    assert "[red]W[/red].safetensors" in done.out


def test_project_does_not_write_onto_a_folder(where: Path, tmp_path: Path) -> None:
    assert "is a folder: name the file to write" in mistake(
        "project", where / "packing", where / "splitting", "-o", tmp_path
    )


def test_project_says_why_it_cannot_write(where: Path) -> None:
    message = mistake("project", where / "packing", where / "gemma", "-o", where / "text.txt" / "W.safetensors")
    assert "cannot write" in message


# -- align -------------------------------------------------------------------------------------------------------------

KEYS = ["method", "student_tokens", "teacher_tokens", "chunks", "student_gaps", "teacher_gaps"]


@pytest.mark.parametrize("method", ["bytes", "dp", "surface"])
def test_align_as_json_has_the_documented_keys(method: str, where: Path) -> None:
    text = "Anna has 123 apples."
    done = Done("align", where / "packing", where / "splitting", "--text", text, "--method", method, "--json")
    assert (done.code, done.err) == (0, "")
    assert done.out.count("\n") == 1
    found = json.loads(done.out)
    assert list(found) == KEYS
    assert found["method"] == method
    expected = align(small("packing").vocabulary, small("splitting").vocabulary, text, method)
    assert [[*c["student"], *c["teacher"]] for c in found["chunks"]] == expected.chunks.tolist()
    assert all(list(c) == ["student", "teacher", "text", "bytes"] for c in found["chunks"])
    assert "".join(c["text"] for c in found["chunks"]) == text
    assert sum(c["bytes"] for c in found["chunks"]) == len(text.encode())
    assert "".join(found["student_tokens"]) == "".join(found["teacher_tokens"]) == text


def test_align_as_json_writes_bytes_that_are_no_text_in_hexadecimal(where: Path) -> None:
    found = json.loads(Done("align", where / "splitting", where / "spm-bpe", "--text", "x 犭", "--json").out)
    assert [c["text"] for c in found["chunks"]][-3:] == ["\\xe7", "\\x8a", "\\xad"]
    assert [c["bytes"] for c in found["chunks"]][-3:] == [1, 1, 1]


def test_align_shows_gaps_and_special_tokens_in_json(where: Path) -> None:
    done = Done("align", where / "packing", where / "splitting", "--text", "hi", "--add-special-tokens", "--json")
    found = json.loads(done.out)
    assert found["student_tokens"][0] == "<|begin_of_text|>"
    assert found["student_gaps"] == [0]
    assert found["teacher_gaps"] == []


def test_align_of_a_file_keeps_its_line_ends(where: Path) -> None:
    found = json.loads(Done("align", where / "packing", where / "gemma", "--file", where / "text.txt", "--json").out)
    assert "".join(c["text"] for c in found["chunks"]) == "Anna has 12 äpfel.\r\n的\n"


def test_align_of_no_text_is_no_error(where: Path) -> None:
    found = json.loads(Done("align", where / "packing", where / "gemma", "--text", "", "--json").out)
    assert found["chunks"] == found["student_tokens"] == []
    assert Done("align", where / "packing", where / "gemma", "--file", where / "empty.txt").code == 0


def test_align_for_people_puts_chunks_under_each_other(where: Path) -> None:
    """Two rows: where a chunk begins in the one it begins in the other, and white space can be seen."""
    done = Done("align", where / "packing", where / "splitting", "--text", "12 the\n12")
    student, teacher = (next(row for row in done.out.splitlines() if row.startswith(s)) for s in ("student", "teacher"))
    assert student.split()[1:] == ["12", "·the", "⏎", "12"]
    assert teacher.split()[1:] == ["1|2", "·the", "⏎", "1|2"]
    assert student.index("·the") == teacher.index("·the")
    assert student.rindex("12") == teacher.rindex("1|2")
    assert "bytes: 4 chunks; 4 student tokens (0 in gaps) and 6 teacher tokens (0 in gaps)" in done.out


def test_align_for_people_counts_gaps(where: Path) -> None:
    done = Done("align", where / "packing", where / "gemma", "--text", "hi", "--add-special-tokens")
    assert "(0 in gaps)" in done.out
    done = Done("align", where / "packing", where / "splitting", "--text", "hi", "--add-special-tokens")
    assert "student tokens (1 in gaps)" in done.out
    assert "<|begin_of_text|>" in done.out


@pytest.mark.parametrize("text", ["[bold]x[/bold] [/]", "\x1b[31mred\x07", "的👍🏽\u200d\u202e", "a\tb\r\n"], ids=ascii)
def test_align_prints_a_text_without_obeying_it(text: str, where: Path) -> None:
    """Neither rich's markup nor control characters of the text reach the terminal as such."""
    done = Done("align", where / "packing", where / "gemma", "--text", text)
    assert (done.code, done.error) == (0, None)
    assert not {"\x1b", "\x07", "\u202e", "\t", "\r"} & set(done.out)
    assert done.out.count("[") >= text.count("[") - text.count("\x1b")


def test_align_of_a_long_text_wraps_in_pairs_of_rows(where: Path) -> None:
    done = Done("align", where / "packing", where / "splitting", "--text", "the quick brown fox " * 30)
    rows = [row for row in done.out.splitlines() if row.startswith(("student ", "teacher "))]
    assert len(rows) > 4
    assert [row[:7] for row in rows] == ["student", "teacher"] * (len(rows) // 2)
    assert max(map(len, rows)) <= 120


# -- mistakes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["audit", "project", "align"])
def test_a_missing_tokenizer_is_named(command: str, where: Path, tmp_path: Path) -> None:
    more = {"audit": [], "project": ["-o", tmp_path / "W"], "align": ["--text", "x"]}[command]
    assert "no tokenizer at './nowhere'" in mistake(command, "./nowhere", where / "packing", *more)
    assert "no tokenizer at './nowhere'" in mistake(command, where / "packing", "./nowhere", *more)


def test_a_broken_tokenizer_is_named(tmp_path: Path, where: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{")
    assert "is not JSON" in mistake("audit", tmp_path, where / "packing", "--json")


def test_align_takes_its_text_from_one_place(where: Path) -> None:
    pair = where / "packing", where / "gemma"
    assert "with --text or with --file" in mistake("align", *pair)
    assert "with --text or with --file" in mistake("align", *pair, "--text", "x", "--file", where / "text.txt")


def test_an_unknown_method_is_named_with_the_nearest(where: Path) -> None:
    message = mistake("align", where / "packing", where / "gemma", "--text", "x", "--method", "byts")
    assert "unknown alignment method 'byts'" in message
    assert "did you mean 'bytes'?" in message


@pytest.mark.parametrize("option", ["--file", "--corpus"])
def test_files_that_cannot_be_read_are_named(option: str, where: Path) -> None:
    command = ["align" if option == "--file" else "audit", where / "packing", where / "gemma", option]
    assert "cannot read" in mistake(*command, where / "nothing.txt")
    assert "cannot read" in mistake(*command, where)
    message = mistake(*command, where / "latin.txt")
    assert "is not UTF-8: byte 0xF6 at offset 6" in message


def test_an_empty_corpus_is_refused(where: Path) -> None:
    assert "holds no text" in mistake("audit", where / "packing", where / "gemma", "--corpus", where / "empty.txt")


def test_a_lone_surrogate_on_the_command_line_is_refused(where: Path) -> None:
    """What a shell passes as bytes that are no UTF-8 reaches Python so."""
    assert "lone surrogate" in mistake("align", where / "packing", where / "gemma", "--text", "a\udce9")


def test_a_lone_surrogate_in_a_path_is_a_missing_file(where: Path) -> None:
    assert "no tokenizer at" in mistake("audit", "./a\udce9", where / "gemma")


@pytest.mark.parametrize(
    "arguments", [["audit"], ["audit", "a", "b", "--jsn"], ["align", "a"], ["projct"]], ids=" ".join
)
def test_wrong_usage_exits_with_2(arguments: list[str]) -> None:
    done = Done(*arguments)
    assert (done.code, done.error, done.out) == (2, None, "")
    assert "Traceback" not in done.err


def test_project_replaces_nothing_but_a_w(where: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("precious", encoding="utf-8")
    assert "is no .safetensors file" in mistake("project", where / "packing", where / "gemma", "-o", text)
    assert text.read_text(encoding="utf-8") == "precious"


def test_json_goes_through_any_terminal(where: Path) -> None:
    """A pipe on Windows is often cp1252, and a bare container's is ASCII."""
    arguments = ["align", str(where / "packing"), str(where / "gemma"), "--text", "的", "--json"]
    code = f"import sys\nfrom xtoken.cli import main\nsys.argv = ['xtoken', *{arguments!r}]\nmain()\n"
    for encoding in ("ascii", "cp1252", "utf-8"):
        done = run(code, PYTHONIOENCODING=encoding)
        assert done.returncode == 0, done.stderr[-300:]
        assert "".join(c["text"] for c in json.loads(done.stdout)["chunks"]) == "的"


def test_an_error_of_the_code_itself_keeps_its_traceback(where: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only mistakes of the caller are told in one line; hiding a fault of ours would hide where it is."""
    import xtoken.alignment

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("ours")

    monkeypatch.setattr(xtoken.alignment, "align", broken)
    done = Done("align", where / "packing", where / "gemma", "--text", "x")
    assert isinstance(done.error, RuntimeError)
    assert done.code == 1


def test_an_interrupt_ends_quietly(where: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import xtoken.alignment

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(xtoken.alignment, "align", interrupted)
    done = Done("align", where / "packing", where / "gemma", "--text", "x")
    assert (done.code, done.out, done.err) == (130, "", "interrupted\n")
