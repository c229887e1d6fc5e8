"""Runs from Python: the results of the command line, without its terminal."""

import csv
import doctest
import subprocess
import sys
import warnings

import numpy as np
import pytest

import streetvision
from streetvision import Run
from streetvision.api import estimator, runs
from streetvision.contracts.artifact_schema import ArtifactSchema
from streetvision.contracts.errors import ArtifactError, ConfigError, DataError
from streetvision.io.atomic import read_json
from streetvision.pipeline.config import compose_config, format_overrides
from streetvision.pipeline.console import Console

FAST = {
    "model": "random_small",
    "model.backbone": {"width": 32, "depth": 1, "heads": 2},
    "model.image_size": 64,
    "training": "frozen",
    "phase2": {"n_resamples": 100},
    "phase5.folds": 2,
}


@pytest.fixture(scope="module")
def examples(scenes, tmp_path_factory):
    """The names that the doctests use."""
    rows = list(csv.DictReader((scenes / "index.csv").open()))
    images = [str(scenes / row["path"]) for row in rows]
    return {
        "PHOTOS": scenes,
        "PHOTO": images[0],
        "IMAGES": images,
        "LABELS": [row["label"] for row in rows],
        "FOLDER": str(tmp_path_factory.mktemp("examples") / "run"),
        "FAST": FAST,
    }


@pytest.mark.parametrize("example", [runs.train, runs.cross_validate, estimator.StreetvisionClassifier])
@pytest.mark.filterwarnings("ignore:the built-in backbone", "ignore:the model predicts one class", "ignore:the labels")
def test_the_examples_of_the_docstrings_run_and_print_nothing_else(example, examples, capfd):
    (test,) = doctest.DocTestFinder(recurse=False).find(example, example.__name__, globs=dict(examples))
    assert test.examples
    outcome = doctest.DocTestRunner().run(test)
    printed = capfd.readouterr()
    assert outcome.failed == 0, printed.out
    assert printed == ("", "")


@pytest.mark.parametrize("jobs", [0, -1])
def test_a_number_of_processes_below_one_is_an_error(scenes, tmp_path, jobs):
    settings = {**FAST, "training": "peft", "run_dir": tmp_path / "cv"}
    with pytest.raises(ConfigError, match=f"jobs is {jobs}"):
        streetvision.cross_validate(scenes, jobs=jobs, progress=False, **settings)


def test_every_public_name_is_loaded_lazily_and_documented():
    code = "import sys, streetvision\nprint(*{'numpy', 'torch', 'pydantic', 'hydra', 'sklearn'} & set(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert loaded.split() == []
    assert set(streetvision.__all__) <= set(dir(streetvision))
    for name in streetvision.__all__:
        assert getattr(streetvision, name).__doc__


def test_settings_are_those_of_the_command_line():
    values = {"training": "peft", "training.epochs": 3, "data": {"class_names": ["no", "yes"]}, "run_dir": None}
    config = compose_config(format_overrides({**values, "data.group_column": None, "training.learning_rate": 1e-05}))
    assert (config.training.mode, config.training.epochs, config.training.learning_rate) == ("peft", 3, 1e-05)
    assert config.data.class_names == ("no", "yes")
    assert config.overrides.keys() == {*format_keys(values), "data.group_column", "training.learning_rate"}
    typed = compose_config(format_overrides({"pipeline.seed": np.int64(3), "data.root": "~/photos"}))
    assert typed.pipeline.seed == 3
    assert not typed.data.root.startswith("~")
    names = ["\U0001f6a7 \\ud83d", "\x7f\x85\u2028\ufeff\u00e9\n"]
    assert compose_config(format_overrides({"data.class_names": names})).data.class_names == tuple(names)


def format_keys(values):
    return {override.partition("=")[0] for override in format_overrides(values)}


@pytest.mark.parametrize(
    "settings",
    [
        {"training.epoch": 3},
        {"training": {"epochs": 3}, "training.epochs": 4},
        {"training.epochs": object()},
        {"data": {"root": "elsewhere"}},
        {"data.root": "elsewhere"},
        {"model": "dinov9"},
    ],
)
def test_wrong_settings_are_config_errors(settings, tmp_path):
    with pytest.raises(ConfigError):
        streetvision.train(tmp_path, progress=False, **settings)


def test_a_folder_without_images_is_a_data_error(tmp_path):
    (tmp_path / "photos").mkdir()
    with pytest.raises(DataError), warnings.catch_warnings(action="ignore"):
        streetvision.train(tmp_path / "photos", progress=False, run_dir=tmp_path / "run", **FAST)


def test_an_earlier_run_is_opened_by_its_path(finished_run, scenes):
    run = Run(str(finished_run))
    assert run.path == finished_run
    assert run.bundle is run.bundle
    assert run.artifacts.splits_json.is_file()
    evaluation = run.evaluate(progress=False, evaluation={"n_resamples": 100})
    recorded = read_json(finished_run / "evaluation" / "evaluation_report.json")
    assert evaluation.metrics["mcc"].estimate == recorded["metrics"]["mcc"]["estimate"]
    assert str(evaluation) == "\n".join(recorded["summary"])
    assert evaluation.report.is_file()
    assert evaluation.predictions.read_text().startswith("policy,")


def test_a_run_without_a_bundle_is_an_artifact_error(tmp_path):
    with pytest.raises(ArtifactError):
        _ = Run(tmp_path).bundle
    with pytest.raises(ArtifactError):
        Run(tmp_path).evaluate(progress=False)


def test_an_evaluation_on_a_dataset_of_the_hub_keeps_its_name(tmp_path, monkeypatch):
    received = []

    def stop(*_, data, **__):
        received.append(data)
        raise DataError("enough")

    monkeypatch.setattr("streetvision.pipeline.run.launch_evaluation", stop)
    with pytest.raises(DataError):
        Run(tmp_path).evaluate("hf://owner/name", progress=False)
    assert received == ["hf://owner/name"]


def test_a_silent_console_warns_through_python(capfd):
    console = Console(silent=True)
    console.line("label", "text")
    assert list(console.track(range(3), total=3, label="loop")) == [0, 1, 2]
    with pytest.warns(UserWarning, match="careful"):
        console.warn("careful")
    assert capfd.readouterr() == ("", "")


def test_a_notebook_gets_whole_lines(monkeypatch, capsys):
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    console = Console()
    console.line("label", "text")
    assert list(console.track(range(3), total=3, label="loop")) == [0, 1, 2]
    assert capsys.readouterr().out == "label         text\n"


def test_a_training_with_labels_records_a_round_as_the_command_does(tmp_path, monkeypatch):
    recorded = []
    monkeypatch.setattr(
        "streetvision.pipeline.run.launch_training", lambda config, console: ArtifactSchema(config.root)
    )
    monkeypatch.setattr(
        "streetvision.pipeline.label_rounds.print_round", lambda schema, _: recorded.append(schema.output_dir)
    )
    streetvision.train(tmp_path, run_dir=tmp_path / "run", progress=False)
    assert recorded == [tmp_path / "run"]
