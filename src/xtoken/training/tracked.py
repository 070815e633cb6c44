"""The Trainer's arguments with the run's settings among them, so that every tracker records both.

The trackers of transformers take `to_dict` for their hyperparameters; the settings stand there as `xtoken/optim.steps`
and so on, one number or word each.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import TrainingArguments

__all__ = ["TrackedArguments"]


class TrackedArguments(TrainingArguments):
    """`TrainingArguments` of a run.

    Attributes:
        run_settings: the settings by dotted key.
    """

    run_settings: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """The Trainer's own, and the run's settings."""
        settings = getattr(self, "run_settings", {})
        return {**super().to_dict(), **{f"xtoken/{key}": value for key, value in settings.items()}}
