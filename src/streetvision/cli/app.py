"""The command line: verbs in one table, heavy imports inside each verb."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from streetvision.cli.data import DATA_VERBS, Overrides, key_value, open_console
from streetvision.cli.errors import COLLAPSED, USER_ERROR, interruptible, show_any_name, told_in_a_line
from streetvision.contracts.errors import ConfigError

if TYPE_CHECKING:
    from streetvision.contracts.artifact_schema import ArtifactSchema
    from streetvision.pipeline.console import Console

ConfigFile = Annotated[
    Path | None, typer.Option("--config", help="A YAML file of settings, below those given here: see examples/.")
]
SERVER_SETTINGS = (
    "max_in_flight=128 requests, max_batch=16 images, max_megabytes=20 and max_megapixels=50 of an image, "
    "timeout_seconds=10, decoders=2 threads"
)
BundlePath = Annotated[Path, typer.Option("--bundle", help="A bundle's folder or its bundle.json.")]


def demo(overrides: Overrides = None) -> None:
    """Run every phase on procedural scenes in outputs/demo, then judge the bundle and write the report."""
    import platform
    from importlib import resources

    from streetvision.pipeline.machine import describe_device

    console = open_console()
    console.line("environment", f"{sys.prefix}  (python {platform.python_version()}, {describe_device()})")
    packaged = Path(str(resources.files("streetvision"))) / "configs" / "demo.yaml"
    schema = _train(["run_dir=outputs/demo", *(overrides or [])], packaged, console)
    _evaluate(schema, console)
    _check_collapse(schema, console)


def train(
    overrides: Overrides = None,
    config: ConfigFile = None,
    search: Annotated[
        Path | None,
        typer.Option("--search", help="A YAML file of what to try, judged on VAL_SELECT: see examples/search.yaml."),
    ] = None,
) -> None:
    """Turn images into a bundle: data.root=FOLDER model=NAME training=frozen|peft|last_n|full run_dir=DIR.

    DIR is outputs/NAME after the data if left out. A key that does not exist, such as model=? or training.?=, is
    answered with those that do; docs/settings.md names what matters first.
    """
    console = open_console()
    if search is not None:
        from streetvision.experiments.search import launch_search

        best = launch_search(search, overrides or [], file=config, console=console)
        console.line("next", f"streetvision train --config {best} run_dir=...")
        return
    schema = _train(overrides or [], config, console)
    from streetvision.pipeline.run import show_where

    show_where(schema, console)
    _check_collapse(schema, console)
    if schema.bundle.is_file():
        console.line("next", f"streetvision evaluate --bundle {schema.export}")


def evaluate(
    bundle: BundlePath,
    overrides: Annotated[list[str] | None, key_value("Settings: evaluation.n_resamples=2000")] = None,
    data: Annotated[str | None, typer.Option("--data", help="Another labelled set, as data.root= takes it.")] = None,
    mode: Annotated[
        Literal["quick", "comprehensive"] | None,
        typer.Option(help="quick: the shipped policy's figures; comprehensive (default): policies, slices, mistakes."),
    ] = None,
) -> None:
    """Judge a bundle on the images that its run set aside, or on another labelled set."""
    from streetvision.pipeline.run import launch_evaluation

    console = open_console()
    settings = [*(overrides or []), *([f"evaluation.mode={mode}"] if mode else [])]
    schema = launch_evaluation(bundle, settings, data=data, console=console)
    _show_evaluation(schema, bundle, console)


def predict(
    bundle: BundlePath,
    images: Annotated[list[Path], typer.Argument(help="Image files, or folders; with --out also .tar and .parquet.")],
    form: Annotated[Literal["jsonl", "csv"], typer.Option("--format", help="How to print the answers.")] = "jsonl",
    explain: Annotated[
        Path | None, typer.Option("--explain", metavar="FOLDER", help="Also draw there what each view showed.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder for the answers to any number of images.")] = None,
    workers: Annotated[int | None, typer.Option(help="--out: how many answer; one a core if left out.")] = None,
    engine: Annotated[
        Literal["local", "ray"] | None, typer.Option(help="--out: local: processes here (default); ray: a cluster.")
    ] = None,
    shard_size: Annotated[int | None, typer.Option(help="--out: images of a shard, 500 if left out.")] = None,
) -> None:
    """Answer for each image: label, decision, calibrated probability of class 1."""
    if out is None:
        _refuse_options("is read with --out only", workers=workers, engine=engine, shard_size=shard_size)
        from streetvision.bundle.batch.files import print_predictions

        failures = print_predictions(bundle, images, form=form, explain=explain)
    else:
        _refuse_options("is not read with --out", explain=explain, format=None if form == "jsonl" else form)
        from streetvision.bundle.batch.predict import answer_sources

        chosen = engine or "local"
        finished = answer_sources(
            bundle, images, out, engine=chosen, workers=workers, shard_size=shard_size, console=open_console()
        )
        failures = finished.failures or 0
    if failures:
        raise typer.Exit(USER_ERROR)


def reward(
    bundle: BundlePath,
    overrides: Annotated[list[str] | None, key_value("Settings: reward.streams=500")] = None,
) -> None:
    """Simulate the subnet's windowed reward on the images that the bundle's run set aside: a look at VAL_TEST."""
    from streetvision.subnet.reward import STATE

    console = open_console()
    console.line("subnet", STATE)
    from streetvision.pipeline.run import launch_reward, reward_lines

    for line in reward_lines(launch_reward(bundle, overrides or [], console=console)):
        console.text(line)


def export(
    bundle: BundlePath,
    out: Annotated[Path, typer.Option("--out", help="A new folder.")],
    overrides: Annotated[list[str] | None, key_value("--runtime: run_dir=RUN of a bundle that was moved.")] = None,
    form: Annotated[
        Literal["miner", "hub"] | None,
        typer.Option("--format", help="miner: what the subnet's stock miner loads; hub: for the Hugging Face hub."),
    ] = None,
    runtime: Annotated[
        Literal["onnx", "openvino"] | None,
        typer.Option(help="A bundle that ONNX Runtime or OpenVINO runs, measured on the run's VAL_SELECT."),
    ] = None,
    precision: Annotated[
        Literal["fp32", "bf16", "int8"] | None,
        typer.Option(help="--runtime: of the backbone; fp32 where none is given."),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="--format: of the model, for its card; streetvision if left out.")
    ] = None,
    hotkey: Annotated[str | None, typer.Option(help="miner: who submits it.")] = None,
    version: Annotated[str | None, typer.Option(help="miner: X.Y.Z; 1.0.0 where none is given.")] = None,
    license: Annotated[
        str | None, typer.Option(help="hub: an identifier such as apache-2.0; other if left out.")
    ] = None,
) -> None:
    """Write a bundle as a folder that another program loads, or as a bundle that another runtime runs."""
    from streetvision.pipeline.export import Request, export_bundle

    request = Request(
        bundle, out, runtime=runtime, precision=precision, name=name, hotkey=hotkey, version=version, license=license
    )
    export_bundle(form, request, overrides or [], open_console())


def check_export(
    folder: Annotated[Path, typer.Argument(help="What export --format miner wrote.")],
    images: Annotated[list[Path], typer.Argument(help="Image files, or folders of them.")],
    bundle: BundlePath,
    python: Annotated[Path | None, typer.Option(help="Interpreter of another environment to load it in.")] = None,
) -> None:
    """Load a miner folder as the subnet's stock miner does, and compare its answers with the bundle's."""
    from streetvision.pipeline.export import check_folder

    if not check_folder(folder, images, bundle, python=python, console=open_console()):
        raise typer.Exit(USER_ERROR)


def serve(
    bundle: BundlePath,
    host: Annotated[str, typer.Option(help="Address; any but loopback needs STREETVISION_API_KEY.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="TCP port to listen on; 0 for one that is free.")] = 8000,
    overrides: Annotated[list[str] | None, key_value(SERVER_SETTINGS)] = None,
) -> None:
    """Answer over HTTP: /predict, /healthz, /metrics, and a page to drop an image on."""
    from streetvision.serving.launch import serve_bundle

    serve_bundle(bundle, overrides or [], host=host, port=port, console=open_console())


def doctor() -> None:
    """Say what this machine has: versions, device, disk, and what is to be done about them."""
    from streetvision.pipeline.machine import examine_machine

    examine_machine(open_console())


def bench(
    section: Annotated[
        str,
        typer.Argument(
            help="calibration, data, gpu, growth, inference, pipeline, reward, startup, statistics, training or views"
        ),
    ],
    page: Annotated[Path | None, typer.Option("--page", help="A Markdown page to write the table into.")] = None,
) -> None:
    """Measure this installation against a floor or a peer, in the same run."""
    from benchmarks.run import run_benchmarks

    console = open_console()
    for figure in run_benchmarks(section, console, page):
        console.line(section, f"{figure.name}: {figure.value:.3f} {figure.unit}")
        console.line("", f"{figure.beside}: {figure.beside_value:.3f} {figure.unit}; ratio {figure.ratio:.3f}")


def ablate(
    table: Annotated[str, typer.Argument(help="A packaged table (specification, backbone, smoke), or a YAML file.")],
    overrides: Overrides = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder of the runs; outputs/ablation_TABLE if left out.")
    ] = None,
    pair: Annotated[list[str] | None, typer.Option("--pair", help="Only this pair; may be given again.")] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="Splits: seeds 0 to N-1 instead of the table's.")] = None,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Runs at a time; if left out one a core, on a GPU one.")
    ] = None,
    page: Annotated[Path | None, typer.Option("--page", help="A Markdown page to write the table into.")] = None,
) -> None:
    """Run pairs of settings over seeds and data sets, and say what each is worth, with corrected intervals."""
    from streetvision.experiments.ablation import Request, launch_ablation

    folder = out or Path("outputs") / f"ablation_{Path(table).stem}"
    asked = Request(table, folder, tuple(overrides or ()), tuple(pair or ()), tuple(range(seeds or 0)), jobs, page)
    if not launch_ablation(asked, open_console()):
        raise typer.Exit(USER_ERROR)


VERBS: dict[str, Callable[..., None]] = {
    "demo": demo,
    "train": train,
    "evaluate": evaluate,
    "predict": predict,
    "serve": serve,
    "reward": reward,
    "export": export,
    "check-export": check_export,
    "ablate": ablate,
    "doctor": doctor,
    "bench": bench,
}


def build_app() -> typer.Typer:
    """The command line as a Typer application."""
    app = typer.Typer(
        help="From a folder of street images to a classifier whose probabilities can be trusted. "
        "--debug anywhere shows the traceback of an error.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,  # plain help: loading rich would take longer than all the rest
    )
    for name, verb in VERBS.items():
        app.command(name)(interruptible(verb))
    data = typer.Typer(help="Look at a data set, import one, or draw one.", no_args_is_help=True, rich_markup_mode=None)
    for name, verb in DATA_VERBS.items():
        data.command(name)(interruptible(verb))
    app.add_typer(data, name="data")
    return app


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; what a user can mend ends in one line and exit code 2, its traceback under --debug."""
    given = sys.argv[1:] if arguments is None else arguments
    show_any_name()
    with told_in_a_line(debug="--debug" in given):
        if "" in given:
            raise ConfigError("one of the arguments is empty", "a variable of the shell may not be set")
        build_app()(args=[a for a in given if a != "--debug"])


def _refuse_options(why: str, **options: object) -> None:
    for name, value in options.items():
        if value is not None:
            raise ConfigError(f"--{name.replace('_', '-')} {why}", "leave it out")


def _train(overrides: list[str], config: Path | None, console: "Console") -> "ArtifactSchema":
    from streetvision.pipeline.config import compose_config

    composed = compose_config(overrides, file=config)
    console.line("run", f"{composed.root}: {', '.join(composed.pipeline.phases)}")  # the next line takes seconds
    from streetvision.pipeline.run import launch_training

    return launch_training(overrides, file=config, console=console)


def _check_collapse(schema: "ArtifactSchema", console: "Console") -> None:
    """End with exit code 3 when the model that was trained answers one class only."""
    from streetvision.pipeline.run import answers_one_class_only

    if answers_one_class_only(schema):
        console.warn("the model answers one class only: look at labels and training.learning_rate, or train longer")
        raise typer.Exit(COLLAPSED)


def _evaluate(schema: "ArtifactSchema", console: "Console") -> None:
    from streetvision.pipeline.run import launch_evaluation

    launch_evaluation(schema.export, [], console=console)
    _show_evaluation(schema, schema.export, console)


def _show_evaluation(schema: "ArtifactSchema", bundle: Path, console: "Console") -> None:
    from streetvision.pipeline.run import report_lines, show_where

    console.text()
    for line in report_lines(schema):
        console.text(line)
    show_where(schema, console)
    console.line("next", f"streetvision predict --bundle {bundle} your.jpg")
