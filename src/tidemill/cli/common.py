"""What the commands share: finding the project, and the ``--json`` switch."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click


def _note_json(ctx: click.Context, _: click.Parameter, value: bool) -> bool:
    ctx.ensure_object(dict)["json"] = value
    return value


def project_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--project``: the folder with system.py, or the file itself."""
    return click.option(
        "--project",
        "-p",
        "path",
        type=click.Path(path_type=Path),
        default=Path(),
        show_default="this folder",
        help="The folder that holds system.py, or the declared file.",
    )(function)


def json_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--json``: plain data instead of text."""
    return click.option(
        "--json", "as_json", is_flag=True, callback=_note_json, is_eager=True, help="Print plain JSON."
    )(function)


def echo_json(data: Any) -> None:
    """Print ``data`` as JSON, indented."""
    click.echo(json.dumps(data, indent=2, ensure_ascii=False))
