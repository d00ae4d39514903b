"""A typer command from a dataclass of options, plus --config and --resume."""

from collections.abc import Callable
from dataclasses import MISSING, fields
from functools import wraps
from inspect import Parameter, Signature, cleandoc
from pathlib import Path
from typing import Annotated, Any

import typer

from fedzo.config import default_of, option_name, option_types

_CONFIG = Annotated[Path | None, typer.Option("--config", help="TOML file with these options, same names.")]
_RESUME = Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")]


def options_command(options: type[Any], function: Callable[..., None]) -> Callable[..., None]:
    """A function whose signature has an option for each field; it passes on only what was given.

    Args:
        options: a dataclass as `fedzo.config` describes.
        function: called with config, resume and the given fields.
    """
    parameters = []
    for field in fields(options):
        kind, text = option_types(options)[field.name]
        default = default_of(field)
        shown: Any = "must be given" if default is MISSING else str(default)
        option = typer.Option(f"--{option_name(field.name)}", help=text, show_default=shown)
        parameters.append(
            Parameter(field.name, Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, option])
        )
    parameters.append(Parameter("config", Parameter.KEYWORD_ONLY, default=None, annotation=_CONFIG))
    parameters.append(Parameter("resume", Parameter.KEYWORD_ONLY, default=False, annotation=_RESUME))

    @wraps(function)
    def command(*, config: Path | None, resume: bool, **given: Any) -> None:
        function(config, resume, **{name: value for name, value in given.items() if value is not None})

    command.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    command.__doc__ = cleandoc(function.__doc__ or "")
    return command
