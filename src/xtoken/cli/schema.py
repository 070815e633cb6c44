"""`xtoken schema`: the JSON schema of a config file, for editors."""

from __future__ import annotations

import json

from xtoken.cli.console import reports_errors

__all__ = ["schema_command"]


@reports_errors
def schema_command() -> None:
    """Print the JSON schema of a config file, which editors check and complete it by."""
    import sys

    from xtoken.schema import config_schema

    sys.stdout.write(json.dumps(config_schema(), indent=2) + "\n")
