"""The settings of a run as a JSON schema, for editors, and as a list to read.

Both are read off the classes of `xtoken.config`, so a new setting is in them by itself. Law: what the schema refuses,
the config refuses; a bare string or list that stands for a section is found by trying it. What depends on several
settings at once (one without effect, say) is the config's to find and not in the schema.

`python -m xtoken schema > docs/xtoken.schema.json` writes the file that editors are given.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from xtoken.config import RunConfig

__all__ = ["Setting", "config_schema", "setting_list"]

# What a section's short form may be, with the schema of it.
_SHORT_FORMS: tuple[tuple[Any, dict[str, Any]], ...] = (
    ("text", {"type": "string"}),
    (["text"], {"type": "array", "items": {"type": "string"}}),
)
_KINDS = {
    "string": "text",
    "integer": "integer",
    "number": "number",
    "boolean": "true or false",
    "object": "section",
}


@dataclass(frozen=True)
class Setting:
    """One key of a config file.

    Attributes:
        key: dotted; N stands for a place in a list.
        kind: what may stand there: `number`, `cosine | linear | constant`.
        default: as YAML would have it; empty where there is none.
        description: what it does.
    """

    key: str
    kind: str
    default: str
    description: str


def config_schema() -> dict[str, Any]:
    """The JSON schema (draft 2020-12) of a config file, with the short forms of its sections."""
    schema = RunConfig.model_json_schema()
    definitions = schema.get("$defs", {})
    for section in _sections(RunConfig, set()):
        forms = [form for example, form in _SHORT_FORMS if _is_taken(section, example)]
        if forms and section.__name__ in definitions:
            definitions[section.__name__] = {"anyOf": [definitions[section.__name__], *forms]}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "An xtoken config file"}


def setting_list() -> Iterator[Setting]:
    """Every setting, in the order of the file."""
    schema = RunConfig.model_json_schema()
    yield from _settings_in(schema, schema.get("$defs", {}), "")


def _sections(annotation: Any, known: set[type[BaseModel]]) -> set[type[BaseModel]]:
    """The sections in an annotation and in their own fields; they are added to `known`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel) and annotation not in known:
        known.add(annotation)
        for field in annotation.model_fields.values():
            _sections(field.annotation, known)
    for inner in get_args(annotation):
        _sections(inner, known)
    return known


def _is_taken(section: type[BaseModel], example: Any) -> bool:
    """Whether a section can be made of this; a complaint about a key inside it means that it was read as one."""
    try:
        section.model_validate(example)
    except ValidationError as error:
        return all(problem["loc"] for problem in error.errors())
    return True


def _settings_in(node: Mapping[str, Any], definitions: Mapping[str, Any], prefix: str) -> Iterator[Setting]:
    for name, field in node.get("properties", {}).items():
        inner, in_list = _section_in(field, definitions)
        if inner is None:
            default = _as_text(field.get("default"))
            yield Setting(prefix + name, _kind(field, definitions), default, field.get("description", ""))
        else:
            yield from _settings_in(inner, definitions, f"{prefix}{name}.{'N.' if in_list else ''}")


def _section_in(field: Mapping[str, Any], definitions: Mapping[str, Any]) -> tuple[Mapping[str, Any] | None, bool]:
    """The one section that a field holds, if it does, and whether it holds a list of them."""
    options = [option for option in field.get("anyOf", [field]) if option.get("type") != "null"]
    found = [option for option in options if "$ref" in option or "$ref" in option.get("items", {})]
    if len(options) != 1 or not found:
        return None, False
    in_list = "items" in found[0]
    section = _resolved(found[0]["items"] if in_list else found[0], definitions)
    return (section, in_list) if "properties" in section else (None, False)


def _resolved(node: Mapping[str, Any], definitions: Mapping[str, Any]) -> Mapping[str, Any]:
    return definitions[node["$ref"].rpartition("/")[2]] if "$ref" in node else node


def _kind(field: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    field = _resolved(field, definitions)
    if "anyOf" in field:
        return " | ".join(_kind(option, definitions) for option in field["anyOf"] if option.get("type") != "null")
    if "enum" in field or "const" in field:
        return " | ".join(_as_text(value) for value in field.get("enum", [field.get("const")]))
    if field.get("type") == "array":
        return f"list of {_kind(field.get('items', {}), definitions)}"
    return _KINDS.get(str(field.get("type")), "value")


def _as_text(value: Any) -> str:
    if value is None:
        return ""
    return str(value).lower() if isinstance(value, bool) else str(value)
