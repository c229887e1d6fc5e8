"""streetvision export."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from streetvision.cli.options import BundlePath, key_value, open_console


def export(
    bundle: BundlePath,
    out: Annotated[Path, typer.Option("--out", help="A new folder.")],
    overrides: Annotated[
        list[str] | None, key_value("With --runtime: run_dir=RUN of a moved bundle, data.root=DIR of moved images.")
    ] = None,
    form: Annotated[
        Literal["miner", "hub"] | None,
        typer.Option("--format", help="miner: for the subnet's reference miner; hub: for the Hugging Face hub."),
    ] = None,
    runtime: Annotated[
        Literal["onnx", "openvino"] | None,
        typer.Option(help="A bundle for ONNX Runtime or OpenVINO, checked on the run's VAL_SELECT."),
    ] = None,
    precision: Annotated[
        Literal["fp32", "bf16", "int8"] | None,
        typer.Option(help="With --runtime: precision of the backbone; default: fp32."),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="With --format: name of the model on its card; default: streetvision.")
    ] = None,
    hotkey: Annotated[str | None, typer.Option(help="With --format miner: the submitter's hotkey.")] = None,
    version: Annotated[str | None, typer.Option(help="With --format miner: X.Y.Z; default: 1.0.0.")] = None,
    license: Annotated[
        str | None, typer.Option(help="With --format hub: an identifier such as apache-2.0; default: other.")
    ] = None,
) -> None:
    """Export a bundle for another program or another runtime."""
    from streetvision.pipeline.export import ExportRequest, export_bundle

    request = ExportRequest(
        bundle, out, runtime=runtime, precision=precision, name=name, hotkey=hotkey, version=version, license=license
    )
    export_bundle(form, request, overrides or [], open_console())
