"""Imports point one way, the host side never sees torch, and losses know neither files nor tokenizers.

Read off the source with `ast`, so that an import inside a function counts as well.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import xtoken

ROOT = Path(xtoken.__file__).parent
MODULES = {
    ".".join(("xtoken", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in sorted(ROOT.rglob("*.py"))
}

# What each part may import of the others: imports point one way. Losses and teachers share a level.
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "files": set(),
    "tokens": {"errors"},
    "alignment": {"tokens", "errors"},
    "projection": {"alignment", "tokens", "errors", "files"},
    "coverage": {"projection", "alignment", "tokens", "errors"},
    "teachers": {"losses", "projection", "alignment", "tokens", "errors"},
    "losses": {"teachers", "projection", "errors"},
    "config": {"errors", "losses", "coverage", "alignment"},
}
HOST = ("errors", "files", "tokens", "alignment", "projection", "coverage")
HEAVY = {"torch", "transformers", "datasets", "accelerate"}
UNKNOWING = ("xtoken.tokens", "xtoken.alignment", "transformers", "tokenizers", "huggingface_hub", "datasets")


def part_of(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def typing_only(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """All of a module but what only a type checker reads."""
    for child in ast.iter_child_nodes(tree):
        if typing_only(child):
            continue
        yield child
        yield from nodes(child)


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in nodes(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import hides where it points"
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
    return found


def top_imports(path: Path) -> set[str]:
    """The modules that must be loaded before this one is; a package's own parts may load the package."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    tree.body = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
    found: set[str] = set()
    for node in tree.body:
        names = [alias.name for alias in node.names]
        found |= (
            set(names) if isinstance(node, ast.Import) else {str(node.module), *(f"{node.module}.{n}" for n in names)}
        )
    return found


def in_part(part: str) -> dict[str, Path]:
    return {module: path for module, path in MODULES.items() if part_of(module) == part}


def under(name: str, roots: tuple[str, ...] | set[str]) -> bool:
    return any(name == root or name.startswith(root + ".") for root in roots)


def test_the_parts_are_there() -> None:
    for part in (*HOST, "losses", "teachers", "cli"):
        assert in_part(part), part


@pytest.mark.parametrize("part", HOST)
def test_the_host_side_never_imports_torch(part: str) -> None:
    for module, path in in_part(part).items():
        assert not {name for name in imports(path) if under(name, HEAVY)}, module


def test_only_one_module_touches_tokenizer_libraries() -> None:
    libraries = ("tokenizers", "sentencepiece", "huggingface_hub", "tiktoken")
    touching = {
        m for part in HOST for m, path in in_part(part).items() if any(under(n, libraries) for n in imports(path))
    }
    assert touching <= {"xtoken.tokens.hf", "xtoken.tokens.vocabulary"}


@pytest.mark.parametrize("part", ALLOWED)
def test_imports_point_one_way(part: str) -> None:
    for module, path in in_part(part).items():
        used = {part_of(name) for name in imports(path) if under(name, ("xtoken",))} - {part, ""}
        parts = {part_of(name) for name in MODULES}
        assert used & parts <= ALLOWED[part], module


def test_no_two_modules_import_each_other() -> None:
    """No cycle through imports at a module's top, of any length."""
    graph = {
        module: {name for name in top_imports(path) if name in MODULES and name != module}
        for module, path in MODULES.items()
    }
    while leaves := {module for module, needed in graph.items() if not needed}:
        graph = {module: needed - leaves for module, needed in graph.items() if module not in leaves}
    assert not graph


@pytest.mark.parametrize("edge", ["cli", "training", "evaluation", "demo", "study"])
def test_nothing_inside_imports_an_edge(edge: str) -> None:
    for module, path in MODULES.items():
        if part_of(module) in ALLOWED:
            assert not {name for name in imports(path) if under(name, (f"xtoken.{edge}",))}, module


def test_nothing_imports_the_command_line_but_its_entry() -> None:
    for module, path in MODULES.items():
        if part_of(module) not in ("cli", "__main__"):
            assert not {name for name in imports(path) if under(name, ("xtoken.cli",))}, module


@pytest.mark.parametrize("part", ["losses", "teachers"])
def test_no_pickle_and_no_collective_beneath_the_edges(part: str) -> None:
    for module, path in in_part(part).items():
        assert not {n for n in imports(path) if under(n, ("pickle", "torch.distributed", "accelerate"))}, module


def test_losses_know_no_tokenizer_and_no_file() -> None:
    """Tensors in, tensors out: neither an import that could read one, nor a call that opens one."""
    opening = {"open", "read_text", "read_bytes", "write_text", "write_bytes", "load", "save", "safe_open"}
    for module, path in in_part("losses").items():
        found = imports(path)
        assert not {name for name in found if under(name, UNKNOWING)}, module
        assert not {name for name in found if under(name, ("pathlib", "os", "io", "safetensors", "json"))}, module
        for node in nodes(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                called = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
                assert called not in opening, f"{module}:{node.lineno} calls {called}"


def test_nothing_is_pickled_anywhere() -> None:
    for module, path in MODULES.items():
        assert not {name for name in imports(path) if under(name, ("pickle", "dill", "cloudpickle"))}, module


def test_the_rules_would_notice(tmp_path: Path) -> None:
    """The reader of imports sees one inside a function, and passes over one for type checkers alone."""
    source = tmp_path / "source.py"
    source.write_text(
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    import torch\n"
        "def f():\n    from transformers import Trainer\n    import os.path as p\n"
    )
    assert imports(source) == {
        "typing",
        "typing.TYPE_CHECKING",
        "transformers",
        "transformers.Trainer",
        "os.path",
    }
    assert under("torch.nn", {"torch"})
    assert not under("torchvision", {"torch"})


def test_every_module_opens_with_what_it_is_for() -> None:
    for module, path in MODULES.items():
        assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), module


def test_public_names_exist_and_load_on_first_use() -> None:
    for name in xtoken.__all__:
        assert getattr(xtoken, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        xtoken.nothing  # noqa: B018
    assert set(xtoken.__all__) <= set(dir(xtoken))
    assert sys.modules["xtoken"] is xtoken
