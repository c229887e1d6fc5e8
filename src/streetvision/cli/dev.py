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
    table: Annotated[str, typer.Argument(help="A packaged table (specification, backbone, smoke), or a YAML file.")],
    overrides: Overrides = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder of the runs; default: outputs/ablation_TABLE.")
    ] = None,
    pair: Annotated[list[str] | None, typer.Option("--pair", help="Only this pair; repeatable.")] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="Splits by seeds 0 to N-1 instead of the table's.")] = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="Runs at a time; default: one a core, on a GPU one.")] = None,
    page: Annotated[Path | None, typer.Option("--page", help="A Markdown page to write the table into.")] = None,
) -> None:
    """Compare pairs of settings over seeds and data sets."""
    from streetvision.experiments.ablation import AblationRequest, launch_ablation

    folder = out or Path("outputs") / f"ablation_{Path(table).stem}"
    request = AblationRequest(
        table, folder, tuple(overrides or ()), tuple(pair or ()), tuple(range(seeds or 0)), jobs, page
    )
    if not launch_ablation(request, open_console()):
        raise typer.Exit(USER_ERROR)


def bench(
    section: Annotated[
        str,
        typer.Argument(
            help="calibration, data, gpu, growth, inference, pipeline, reward, startup, statistics, training or views"
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
