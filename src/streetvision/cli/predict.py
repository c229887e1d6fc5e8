"""streetvision predict."""

import math
from pathlib import Path
from typing import Annotated, Literal

import typer

from streetvision.cli.errors import USER_ERROR
from streetvision.cli.options import BundlePath, open_console, refuse_options
from streetvision.contracts.errors import ConfigError


def predict(
    bundle: BundlePath,
    images: Annotated[list[Path], typer.Argument(help="Image files or folders; with --out also .tar and .parquet.")],
    form: Annotated[Literal["jsonl", "csv"], typer.Option("--format", help="Output format.")] = "jsonl",
    explain: Annotated[
        Path | None, typer.Option("--explain", metavar="FOLDER", help="Also draw each image with its views there.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder for predictions of any number of images.")] = None,
    workers: Annotated[int | None, typer.Option(help="With --out: worker processes; default: one per core.")] = None,
    engine: Annotated[
        Literal["local", "ray"] | None, typer.Option(help="With --out: local processes (default) or a Ray cluster.")
    ] = None,
    shard_size: Annotated[int | None, typer.Option(help="With --out: images per shard; default: 500.")] = None,
    signals: Annotated[
        bool, typer.Option("--signals", help="With --out: also write what streetvision monitor reads.")
    ] = False,
    monitor_state: Annotated[
        Path | None, typer.Option("--monitor-state", help="State of monitor; certify nothing if it withdraws.")
    ] = None,
    max_megapixels: Annotated[
        float, typer.Option(min=0.001, max=178, help="Largest JPEG; other formats may have a fifth of it.")
    ] = 100,
) -> None:
    """Predict labels and calibrated probabilities of images."""
    from streetvision.data.config import DecodeLimits

    if math.isnan(max_megapixels):  # which is in every range of Click
        raise ConfigError("--max-megapixels nan is not a number", "give millions of pixels, from 0.001 to 178")
    limits = DecodeLimits(max_megapixels=max_megapixels, setting="--max-megapixels")
    if out is None:
        refuse_options("needs --out", workers=workers, engine=engine, shard_size=shard_size, signals=signals or None)
        from streetvision.bundle.batch.files import print_predictions

        failures = print_predictions(
            bundle, images, output_format=form, explain=explain, monitor_state=monitor_state, limits=limits
        )
    else:
        refuse_options("has no effect with --out", explain=explain, format=None if form == "jsonl" else form)
        from streetvision.bundle.batch.predict import predict_sources

        finished = predict_sources(
            bundle,
            images,
            out,
            engine=engine or "local",
            workers=workers,
            shard_size=shard_size,
            signals=signals,
            monitor_state=monitor_state,
            limits=limits,
            console=open_console(),
        )
        failures = finished.failures or 0
    if failures:
        raise typer.Exit(USER_ERROR)
