"""Options, the console and the output that several verbs share."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from streetvision.cli.errors import COLLAPSED
from streetvision.contracts.errors import ConfigError

if TYPE_CHECKING:
    from streetvision.contracts.artifact_schema import ArtifactSchema
    from streetvision.pipeline.console import Console


def key_value(example: str) -> Any:
    """The KEY=VALUE arguments at the end of a command, with their help."""
    return typer.Argument(metavar="KEY=VALUE", help=example)


Overrides = Annotated[list[str] | None, key_value("Settings, for example loader.num_workers=2")]
ConfigFile = Annotated[
    Path | None, typer.Option("--config", help="A YAML file of settings (see examples/); KEY=VALUE wins over it.")
]
BundlePath = Annotated[Path, typer.Option("--bundle", help="Folder of the bundle, or its bundle.json.")]


def open_console() -> "Console":
    """The console of a verb. It is imported when the verb runs."""
    from streetvision.pipeline.console import Console

    return Console()


def refuse_options(reason: str, **options: object) -> None:
    """Raise ConfigError for the first option that is given, so is not None."""
    for name, value in options.items():
        if value is not None:
            raise ConfigError(f"--{name.replace('_', '-')} {reason}", "leave it out")


def run_training(overrides: list[str], config: Path | None, console: "Console") -> "ArtifactSchema":
    """Train. The run folder is printed first, because the imports take seconds."""
    from streetvision.pipeline.config import compose_config

    composed = compose_config(overrides, file=config)
    console.line("run", f"{composed.root}: {', '.join(composed.pipeline.phases)}")
    from streetvision.pipeline.run import launch_training

    return launch_training(composed, console=console)


def print_evaluation(schema: "ArtifactSchema", bundle: Path, console: "Console") -> None:
    """Print the metrics of an evaluation, the path of the report, and the next command."""
    from streetvision.pipeline.run import evaluation_lines

    console.text()
    for line in evaluation_lines(schema):
        console.text(line)
    console.text()
    console.line("report", str(schema.report_html))
    console.next_command("streetvision", "predict", "--bundle", bundle, "street.jpg")


def exit_if_collapsed(schema: "ArtifactSchema", console: "Console") -> None:
    """Exit with code 3 when the trained model predicts one class only."""
    from streetvision.pipeline.run import COLLAPSED_WARNING, predicts_one_class_only

    if predicts_one_class_only(schema):
        console.warn(COLLAPSED_WARNING)
        raise typer.Exit(COLLAPSED)
