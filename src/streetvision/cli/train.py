"""streetvision train."""

import time
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from streetvision.cli.options import ConfigFile, Overrides, exit_if_collapsed, open_console, run_training


def train(
    overrides: Overrides = None,
    config: ConfigFile = None,
    search: Annotated[
        Path | None,
        typer.Option(
            "--search",
            help="A YAML search space; trials are compared on VAL_SELECT or out of fold (examples/search.yaml).",
        ),
    ] = None,
) -> None:
    """Train on images and export a bundle.

    Usual settings: data.root=FOLDER model=NAME training=auto|frozen|peft|last_n|full run_dir=DIR. The default of
    run_dir is outputs/NAME, named after the data. An unknown key or name prints the ones that exist.
    """
    console = open_console()
    if search is not None:
        from streetvision.experiments.search import launch_search
        from streetvision.pipeline.config import compose_config

        best = launch_search(search, compose_config(overrides or [], file=config), console=console)
        console.next_command("streetvision", "train", "--config", best, f"run_dir={best.parent.parent}")
        return
    started = time.time()
    schema = run_training(overrides or [], config, console)
    from streetvision.pipeline.label_rounds import print_round
    from streetvision.pipeline.run import is_current, print_artifact_paths

    print_artifact_paths(schema, console)
    print_round(schema, console)
    exit_if_collapsed(schema, console)
    if is_current(schema, "phase6"):
        console.next_command("streetvision", "evaluate", "--bundle", schema.export_dir)
        if schema.manifest("phase6").stat().st_mtime >= started:  # not for a bundle that is unchanged
            with suppress(KeyboardInterrupt):  # the training is complete
                from streetvision.pipeline.runtime_export import offer_openvino

                offer_openvino(schema.export_dir, console)
