"""The command line: one table of verbs. Each verb imports heavy libraries when it runs."""

import sys
from collections.abc import Callable
from typing import Annotated

import typer

import streetvision
from streetvision.cli import data, dev, subnet
from streetvision.cli.cross_validate import cross_validate
from streetvision.cli.demo import demo
from streetvision.cli.doctor import doctor
from streetvision.cli.errors import flushed_output, prepare_streams, prepare_verb, report_errors
from streetvision.cli.evaluate import evaluate
from streetvision.cli.export import export
from streetvision.cli.label import label
from streetvision.cli.monitor import monitor
from streetvision.cli.predict import predict
from streetvision.cli.serve import serve
from streetvision.cli.train import train
from streetvision.contracts.errors import ConfigError


def _print_version(value: bool) -> None:
    if value:
        typer.echo(f"streetvision {streetvision.__version__}")
        raise typer.Exit


Verbs = dict[str, Callable[..., None]]
VERBS: Verbs = {
    "demo": demo,
    "train": train,
    "evaluate": evaluate,
    "cross-validate": cross_validate,
    "predict": predict,
    "serve": serve,
    "export": export,
    "label": label,
    "monitor": monitor,
    "doctor": doctor,
}
GROUPS: dict[str, tuple[str, Verbs]] = {
    "data": ("Check, import or draw a data set.", {"check": data.check, "import": data.import_, "scenes": data.scenes}),
    "subnet": ("NATIX StreetVision subnet.", {"reward": subnet.reward, "check-export": subnet.check_export}),
    "dev": ("Ablations and benchmarks of streetvision itself.", {"ablate": dev.ablate, "bench": dev.bench}),
}
"""Group -> its help and its verbs."""


def options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """Train, calibrate and ship a street-image classifier with certified risk.

    --debug shows the traceback of an error.
    """


def build_app() -> typer.Typer:
    """The command line as a Typer application."""
    app = typer.Typer(
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,  # plain help: importing rich takes longer than everything else
    )
    app.callback()(options)
    for name, verb in VERBS.items():
        app.command(name)(prepare_verb(verb))
    for group, (text, verbs) in GROUPS.items():
        inner = typer.Typer(help=text, no_args_is_help=True, rich_markup_mode=None)
        for name, verb in verbs.items():
            inner.command(name)(prepare_verb(verb))
        app.add_typer(inner, name=group)
    return app


def main(arguments: list[str] | None = None) -> None:
    """Run the command line. User errors exit with code 2 and no traceback, unless --debug is given."""
    given = sys.argv[1:] if arguments is None else arguments
    prepare_streams()
    if (encoding := sys.getfilesystemencoding()) != "utf-8":
        typer.echo(f"warning: file names are read as {encoding}; for names in UTF-8 set PYTHONUTF8=1", err=True)
    with report_errors(debug="--debug" in given), flushed_output():
        if "" in given:
            raise ConfigError("one of the arguments is empty", "check whether a shell variable is unset")
        build_app()(args=[a for a in given if a != "--debug"])
