"""streetvision dev ablate | bench."""

import sys
from pathlib import Path
from typing import Annotated

import typer

import streetvision
from streetvision.cli.errors import USER_ERROR
from streetvision.cli.options import Overrides, open_console
from streetvision.contracts.errors import ConfigError


def ablate(
    table: Annotated[
        str, typer.Argument(help="A packaged table (specification, backbone, stages, results, smoke), or a YAML file.")
    ],
    overrides: Overrides = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder of the runs; default: outputs/ablation_TABLE.")
    ] = None,
    pair: Annotated[list[str] | None, typer.Option("--pair", help="Only this pair; repeatable.")] = None,
    system: Annotated[
        list[str] | None, typer.Option("--system", help="Only this system and the first; repeatable.")
    ] = None,
    data: Annotated[list[str] | None, typer.Option("--data", help="Only this data set; repeatable.")] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="Splits by seeds 0 to N-1 instead of the table's.")] = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="Runs at a time; default: one per core; GPU: one.")] = None,
    page: Annotated[Path | None, typer.Option("--page", help="A Markdown page to write the table into.")] = None,
) -> None:
    """Compare settings over seeds and data sets, or systems."""
    from streetvision.experiments.request import ExperimentRequest
    from streetvision.experiments.systems_table import SystemsTable
    from streetvision.experiments.tables import read_table

    folder = out or Path("outputs") / f"ablation_{Path(table).stem}"
    content, settings = read_table(table), tuple(overrides or ())
    if data and any(setting.startswith("data.root=") for setting in settings):
        raise ConfigError("--data has no effect when data.root is set", "leave out one of the two")
    if isinstance(content, SystemsTable):
        from streetvision.experiments.systems import launch_systems

        if pair or seeds:
            raise ConfigError("a table of systems has no pairs and no seeds", "select systems with --system")
        content = content.only(tuple(system or ()), tuple(data or ()))
        finished = launch_systems(ExperimentRequest(content, table, folder, settings, jobs, page), open_console())
    else:
        from streetvision.experiments.ablation import launch_ablation

        if system:
            raise ConfigError("--system is for tables of systems", "select pairs with --pair")
        content = content.only(tuple(pair or ()), tuple(data or ()), tuple(range(seeds or 0)))
        finished = launch_ablation(ExperimentRequest(content, table, folder, settings, jobs, page), open_console())
    if not finished:
        raise typer.Exit(USER_ERROR)


def bench(
    section: Annotated[
        str,
        typer.Argument(
            help="calibration, data, gpu, growth, inference, photos, pipeline, reward, startup, statistics, training, "
            "or views"
        ),
    ],
    page: Annotated[Path | None, typer.Option("--page", help="A Markdown page to write the table into.")] = None,
) -> None:
    """Measure against baselines in the same run."""
    checkout = Path(streetvision.__file__).parents[2]
    if not (checkout / "benchmarks" / "run.py").is_file():
        raise ConfigError(
            "the benchmarks are not part of the installed package", "run it from a clone of the repository"
        )
    if str(checkout) not in sys.path:
        sys.path.insert(0, str(checkout))
    from benchmarks.run import run_benchmarks

    console = open_console()
    for figure in run_benchmarks(section, console, page):
        console.line(section, f"{figure.name}: {figure.value:.3f} {figure.unit}")
        console.line("", f"{figure.baseline}: {figure.baseline_value:.3f} {figure.unit}; ratio {figure.ratio:.3f}")
