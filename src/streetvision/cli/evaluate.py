"""streetvision evaluate."""

from typing import Annotated, Literal

import typer

from streetvision.cli.options import BundlePath, key_value, open_console, print_evaluation
from streetvision.io.user_paths import user_source


def evaluate(
    bundle: BundlePath,
    overrides: Annotated[list[str] | None, key_value("Settings: evaluation.n_resamples=2000")] = None,
    data: Annotated[str | None, typer.Option("--data", help="Another labeled data set, as for data.root=.")] = None,
    mode: Annotated[
        Literal["quick", "comprehensive"] | None,
        typer.Option(help="quick: shipped policy only; comprehensive (default): policies, slices, mistakes."),
    ] = None,
) -> None:
    """Evaluate a bundle on VAL_TEST or on another data set."""
    console = open_console()
    console.line("bundle", str(bundle))  # first, because the imports take seconds
    from streetvision.pipeline.config import compose_config
    from streetvision.pipeline.run import launch_evaluation

    config = compose_config([*(overrides or []), *([f"evaluation.mode={mode}"] if mode else [])])
    schema = launch_evaluation(bundle, config, data=None if data is None else user_source(data), console=console)
    print_evaluation(schema, bundle, console)
