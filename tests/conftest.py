"""Shared fixtures: the command line, a tiny data set, a finished run, a browser, and real data if available."""

import atexit
import gc
import os
import shutil
from functools import cache
from itertools import groupby
from pathlib import Path

import pytest
from filelock import FileLock
from hypothesis import settings

from streetvision.cli.app import main

CI = bool(os.environ.get("CI"))
settings.register_profile("streetvision", deadline=None, derandomize=CI, max_examples=100 if CI else 40)
settings.load_profile("streetvision")

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
TINY_MODEL = [
    "model=random_small",
    "model.backbone.width=32",
    "model.backbone.depth=1",
    "model.backbone.heads=2",
    "model.image_size=64",
    "training=frozen",
    "phase2.n_resamples=100",
    "phase5.folds=2",
    "data.protocol=split",
]
TINY_ADAPTATION = [
    "model.backbone.depth=2",
    "phase4a.batch_size=16",
    "phase4a.rank=4",
    "phase4a.projection_hidden=32",
    "phase4a.projection_dim=16",
    # Given, the strength of the views is not measured, which takes as long as the adaptation.
    "phase4a.views.crop_scale=[0.2,1]",
    "phase4a.views.color_jitter=0.8",
    "phase4a.views.grayscale_p=0.2",
]


def edit_bundle_json(folder, change):
    """Change bundle.json and update its digest, as an attacker would."""
    from streetvision.io.atomic import read_json, sha256_json, write_json_atomic

    content = read_json(folder / "bundle.json")
    change(content)
    content["digest"] = sha256_json({key: value for key, value in content.items() if key != "digest"})
    write_json_atomic(folder / "bundle.json", content)


def logged_metric(folder, name):
    """The values of a metric in the TensorBoard files of open_loggers."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return [event.value for event in EventAccumulator(str(folder / "tensorboard")).Reload().Scalars(name)]


SLOW_FIXTURES = {"finished_run", "onnx_bundle", "real_data", "browser"}
SLOW_FOLDERS = ("api", "pipeline", "experiments", "robustness", "training", "subnet", "bundle", "serving", "benchmarks")


def pytest_ignore_collect(collection_path, config):
    """Do not even import slow folders if their tests are left out."""
    tests = Path(__file__).parent
    slow = any(collection_path.is_relative_to(tests / folder) for folder in SLOW_FOLDERS)
    return True if slow and config.option.markexpr == "not slow" else None


def pytest_collection_modifyitems(items):
    """Mark the tests that train a model or start processes, which `make test-fast` leaves out, and order all tests.

    pytest-xdist gives each worker one half, and a worker without work takes tests from the end of the other half. So
    each half ends with fast tests: a module that prepares a run is not divided, which would prepare it twice.
    """
    for item in items:
        folder = item.path.relative_to(Path(__file__).parent).parts[0]
        if folder in SLOW_FOLDERS or SLOW_FIXTURES & set(item.fixturenames):
            item.add_marker(pytest.mark.slow)
    long = [item for item in items if item.get_closest_marker("long")]
    others = [item for item in items if not item.get_closest_marker("long")]
    slow, fast = ([item for item in others if bool(item.get_closest_marker("slow")) == kind] for kind in (True, False))
    modules = [list(tests) for _, tests in groupby(slow, key=lambda item: item.path)]
    first, second = ([item for module in modules[place::2] for item in module] for place in (0, 1))
    n_fast = max(0, len(items) // 2 - len(long) - len(first))
    items[:] = [*long, *first, *fast[:n_fast], *second, *fast[n_fast:]]


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """Leave the libraries, which have a million objects and no garbage, out of every garbage collection."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()
        atexit.register(gc.unfreeze)  # libraries report what was not released


@pytest.fixture
def command(capsys):
    """Run the command line in this process; returns (exit code, standard output, standard error)."""

    def run(*arguments):
        code = 0
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as stop:
            code = stop.code or 0
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture(scope="session", autouse=True)
def plain_figures():
    """Small figures without layout, grid and numbers, which take a third of the time, except with `figures_as_drawn`.

    Returns the resolution and the style as a run has them.
    """
    from streetvision.eval import figures

    left_out = ("figure.constrained_layout.use", "axes.grid", "xtick.labelbottom", "ytick.labelleft")
    drawn = figures.DPI, figures.STYLE
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "DPI", 40)
        patch.setattr(figures, "STYLE", figures.STYLE | dict.fromkeys(left_out, False))
        yield drawn


@pytest.fixture
def figures_as_drawn(plain_figures, monkeypatch):
    """Figures as a run draws them."""
    from streetvision.eval import figures

    for name, value in zip(("DPI", "STYLE"), plain_figures, strict=True):
        monkeypatch.setattr(figures, name, value)


@pytest.fixture(scope="session", autouse=True)
def no_fsync():
    """The files of a test need not survive a power failure, and a run waits for the disk dozens of times."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def one_onnx_registry():
    """The table of ONNX operations is made once, not for each export: that takes half of the time."""
    from torch.onnx._internal.exporter import _registration

    made = _registration.ONNXRegistry.from_torchlib
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_registration.ONNXRegistry, "from_torchlib", staticmethod(cache(made)))
        yield


@pytest.fixture(scope="session")
def made_once(tmp_path_factory):
    """made_once(name, make): a folder that make(folder) fills, once for all workers of pytest-xdist."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def made(name, make):
        folder, done = shared / name, shared / f"{name}.done"
        with FileLock(shared / f"{name}.lock"):
            if not done.exists():
                shutil.rmtree(folder, ignore_errors=True)
                make(folder)
                done.touch()
        return folder

    return made


@pytest.fixture(scope="session")
def scenes(made_once):
    """A folder of 160 small drawn scenes with an index."""
    from streetvision.contracts.progress import Silent
    from streetvision.synthetic.scenes import SceneConfig, write_scenes

    config = SceneConfig(count=160, width=96, height=72)
    return made_once("scenes", lambda folder: write_scenes(folder, config, Silent()))


@pytest.fixture(scope="session")
def finished_run(scenes, made_once, tmp_path_factory):
    """The run folder of every phase and the evaluation on `scenes`; tests that change it work on a copy.

    Each worker has a copy of its own, because commands lock a run.
    """

    def make(root):
        for arguments in (
            ["train", f"data.root={scenes}", f"run_dir={root}", *TINY_MODEL],
            ["evaluate", "--bundle", str(root / "export"), "evaluation.n_resamples=100"],
        ):
            with pytest.raises(SystemExit) as stop:
                main(arguments)
            assert not stop.value.code

    return shutil.copytree(made_once("finished", make), tmp_path_factory.mktemp("runs") / "finished")


@pytest.fixture(scope="session")
def onnx_bundle(finished_run, made_once, tmp_path_factory):
    """The bundle of `finished_run` for ONNX Runtime, whose processes import no torch."""

    def make(root):
        from streetvision.pipeline.console import Console
        from streetvision.pipeline.runtime_export import RuntimeRequest, export_runtime

        run = shutil.copytree(finished_run, root)
        export_runtime(RuntimeRequest(run / "export", run / "onnx", "onnx", "fp32"), [], Console())

    return shutil.copytree(made_once("exported", make), tmp_path_factory.mktemp("runs") / "exported") / "onnx"


@pytest.fixture(scope="module")
def browser():
    """Headless Chromium; the tests are skipped without it, except in CI.

    Its event loop occupies this thread, so its scope is one module: tests of others run event loops of their own.
    """
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        assert not os.environ.get("CI"), "CI must have Chromium: .ci/run installs it"
        pytest.skip(f"none of {', '.join(BROWSERS)} is installed")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture(scope="session")
def real_data():
    """The folder of real weights and images; tests are skipped without it."""
    folder = os.environ.get("STREETVISION_REAL_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("STREETVISION_REAL_DATA is not a folder of real weights and images")
    return Path(folder)
