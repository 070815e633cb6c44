"""Enough of JSON schema to hold a config against ours: a keyword that is not known here is an error, not a pass."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["problems"]

_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "array": (list,),
    "object": (dict,),
    "null": (type(None),),
}
_NOTES = {"title", "description", "default", "$schema", "$defs", "examples"}
_LIMITS = {
    "minimum": lambda value, limit: value >= limit,
    "exclusiveMinimum": lambda value, limit: value > limit,
    "maximum": lambda value, limit: value <= limit,
    "exclusiveMaximum": lambda value, limit: value < limit,
}


def problems(value: Any, schema: Mapping[str, Any], root: Mapping[str, Any], where: str = "") -> Iterator[str]:
    """What a schema finds wrong with a value, with the place."""
    for keyword, expected in schema.items():
        if keyword in _NOTES:
            continue
        if keyword == "$ref":
            yield from problems(value, root["$defs"][expected.removeprefix("#/$defs/")], root, where)
        elif keyword == "anyOf":
            found = [list(problems(value, option, root, where)) for option in expected]
            if all(found):
                yield from min(found, key=len)
        elif keyword == "type":
            is_flag = isinstance(value, bool) and expected != "boolean"
            if is_flag or not isinstance(value, _TYPES[expected]):
                yield f"{where}: {value!r} is no {expected}"
        elif keyword in ("enum", "const"):
            if value not in (expected if keyword == "enum" else [expected]):
                yield f"{where}: {value!r} is not among {expected}"
        elif keyword in _LIMITS:
            if isinstance(value, (int, float)) and not _LIMITS[keyword](value, expected):
                yield f"{where}: {value} breaks {keyword} {expected}"
        elif keyword == "properties":
            for name, item in value.items() if isinstance(value, dict) else ():
                if name in expected:
                    yield from problems(item, expected[name], root, f"{where}.{name}")
        elif keyword == "additionalProperties":
            known = schema.get("properties", {})
            for name, item in value.items() if isinstance(value, dict) else ():
                if name not in known and expected is False:
                    yield f"{where}.{name}: unknown key"
                elif name not in known and isinstance(expected, dict):
                    yield from problems(item, expected, root, f"{where}.{name}")
        elif keyword == "required":
            yield from (f"{where}.{name}: missing" for name in expected if name not in value)
        elif keyword == "items":
            for number, item in enumerate(value if isinstance(value, list) else ()):
                yield from problems(item, expected, root, f"{where}.{number}")
        elif keyword in ("minItems", "maxItems", "minLength", "maxLength"):
            if isinstance(value, (list, str)):
                is_right = len(value) >= expected if keyword.startswith("min") else len(value) <= expected
                if not is_right:
                    yield f"{where}: {value!r} breaks {keyword} {expected}"
        else:
            raise NotImplementedError(f"{where}: the schema uses {keyword!r}; teach it to tests/json_schema.py")
