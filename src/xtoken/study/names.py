"""What a method is called together with its variant: "gold @ weight 0.3". Law: `split_name` takes apart `full_name`."""

from __future__ import annotations

__all__ = ["full_name", "split_name"]

_AT = " @ "


def full_name(method: str, variant: str | None) -> str:
    """One name of both; the method's own where there is no variant, which is None or empty."""
    return f"{method}{_AT}{variant}" if variant else method


def split_name(name: str) -> tuple[str, str | None]:
    """The method and its variant; None where there is none."""
    method, _, variant = name.partition(_AT)
    return method, variant or None
