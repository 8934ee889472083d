"""The options by which commands print JSON."""

from __future__ import annotations

from typing import Annotated

import typer

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
JsonLinesOption = Annotated[bool, typer.Option("--json", help="Print one JSON object per line.")]
JsonHandlersOption = Annotated[bool, typer.Option("--json", help="Print one JSON object per handler.")]
