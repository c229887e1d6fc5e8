"""streetvision train --search: the space, the objective, the files it writes."""

import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import optuna
import pytest
from yaml import safe_dump, safe_load

from streetvision.contracts.artifact_schema import ArtifactSchema
from streetvision.contracts.errors import ConfigError
from streetvision.experiments import search as searching
from streetvision.experiments.search import Categorical, Range, SearchConfig, Trial, read_search
from streetvision.io.atomic import read_json
from streetvision.pipeline.config import compose_config
from tests.conftest import TINY_MODEL

MLP = [*TINY_MODEL, "model.head.kind=mlp"]  # trained with gradients
EXAMPLES = Path(__file__).parents[2] / "examples"
SPACE = {
    "training.learning_rate": {"low": 1e-4, "high": 1e-1, "log": True},
    "training.loss.name": {"choices": ["cross_entropy", "focal"]},
}


@pytest.fixture
def one_process(monkeypatch):
    """Trials in this process, one after the other: test_ablation.py has them in their own."""

    def one_after_another(work, tasks, jobs, preload=()):
        for task in tasks:
            code = 0
            try:
                work(task, 1)
            except SystemExit as stop:
                code = stop.code
            yield task, code

    monkeypatch.setattr(searching, "run_in_processes", one_after_another)
    monkeypatch.setattr(searching, "write_output_to", lambda log: None)


@pytest.fixture
def no_training(monkeypatch):
    """Trials that only have the metrics of phase 1."""
    metrics = {"val_select_mcc": 0.9, "shipped_val_select_mcc": 0.3}
    monkeypatch.setattr(searching, "run_in_processes", lambda _, tasks, *__, **___: ((task, 0) for task in tasks))
    monkeypatch.setattr(searching, "read_manifest", lambda _: SimpleNamespace(metrics=metrics))


@pytest.fixture
def space(tmp_path):
    def write(trials, **changed):
        file = tmp_path / "search.yaml"
        file.write_text(safe_dump({"trials": trials, "jobs": 1, "space": SPACE, **changed}))
        return file

    return write


def study_of(run):
    return optuna.load_study(study_name="phase1", storage=f"sqlite:///{run / 'search' / 'study.db'}")


def test_a_search_leaves_settings_that_train_takes_and_goes_on(one_process, scenes, tmp_path, space, command):
    run = tmp_path / "run"
    asked = [f"data.root={scenes}", f"run_dir={run}", *MLP]
    code, out, err = command("train", "--search", space(2), *asked)
    assert code == 0, err
    trials = study_of(run).trials
    roots = [folder for folder in (run / "search" / "trials").iterdir() if folder.is_dir()]
    assert len(trials) == len(roots) == 2
    assert {path.name for root in roots for path in root.iterdir() if path.is_dir()} <= {"phase1", "cache"}

    settings = safe_load((run / "search" / "best.yaml").read_text())
    assert {key: settings[key] for key in SPACE} == study_of(run).best_params
    assert settings["pipeline.phases"] == ["phase1", "phase2", "phase5", "phase6"]
    again = [
        "train",
        "--config",
        run / "search" / "best.yaml",
        f"run_dir={tmp_path / 'best'}",
        "pipeline.phases=[phase1]",
    ]
    assert command(*again)[0] == 0
    found = read_json(tmp_path / "best" / "phase1" / "manifest.json")["metrics"]["shipped_val_select_mcc"]
    assert found == pytest.approx(study_of(run).best_value)

    study_of(run).ask(
        {key: part.distribution() for key, part in read_search(space(3)).space.items()}
    )  # and then killed
    killed = study_of(run).trials[2].params
    code, out, _ = command("train", "--search", space(3), *asked)
    assert code == 0
    assert "3 trials, 2 of them done" in out
    assert study_of(run).trials[3].params == killed
    assert "3 of them done" in command("train", "--search", space(3), *asked, "loader.num_workers=2")[1]

    code, _, err = command("train", "--search", space(3), *asked, "training.weight_decay=0.3")
    assert code == 2
    assert "is of a search with another space or other settings" in err


def test_the_next_command_trains_in_the_run_folder_of_the_search(no_training, scenes, tmp_path, space, command):
    run = tmp_path / "elsewhere"
    code, out, err = command("train", "--search", space(1), f"data.root={scenes}", f"run_dir={run}", *MLP)
    assert code == 0, err
    assert out.rstrip().endswith(f"train --config {run / 'search' / 'best.yaml'} run_dir={run}")


def test_trials_have_the_data_of_the_run(no_training, scenes, tmp_path, space, command):
    run = tmp_path / "run"
    of_data = ["data.class_names=[clear,works]", "data.seed=3", "data.grouping.radius=4", "data.fractions.train=0.55"]
    of_data += ["data.fractions.val_test=0.15", "loader.max_megapixels=150"]
    code, _, err = command("train", f"data.root={scenes}", f"run_dir={run}", *MLP, *of_data, "pipeline.phases=[data]")
    assert code == 0, err
    model = [setting for setting in MLP if not setting.startswith("data.")]
    code, _, err = command("train", "--search", space(1), f"run_dir={run}", *model)
    assert code == 0, err
    recorded = read_json(run / "manifest.json")["config"]["DataConfig"]
    config = compose_config([], file=run / "search" / "best.yaml")
    assert config.data.model_dump(mode="json") == recorded
    assert config.loader.max_megapixels == 150
    assert recorded["class_names"] == ["clear", "works"]


def test_trials_have_the_splits_of_the_run_when_images_were_added(one_process, scenes, tmp_path, space, command):
    header, *rows = (scenes / "index.csv").read_text().splitlines()
    index, run = tmp_path / "index.csv", tmp_path / "run"
    asked = [f"data.root={index}", f"run_dir={run}", *MLP]
    index.write_text("\n".join([header, *(f"{scenes}/{row}" for row in rows[:100])]))
    assert command("train", *asked, "pipeline.phases=[data]")[0] == 0
    of_run = {row["sha256"]: row["split"] for row in read_json(run / "splits.json")["rows"]}
    index.write_text("\n".join([header, *(f"{scenes}/{row}" for row in rows)]))
    code, out, err = command("train", "--search", space(1), *asked, "training.epochs=1")
    assert code == 0, out + err
    (trial,) = (run / "search" / "trials").glob("*/splits.json")
    of_trial = {row["sha256"]: row["split"] for row in read_json(trial)["rows"]}
    assert len(of_trial) > len(of_run)
    assert of_run.items() <= of_trial.items()


def test_a_search_in_a_run_with_an_adapted_backbone_needs_a_choice(no_training, scenes, tmp_path, space, command):
    schema = ArtifactSchema(tmp_path / "run")
    asked = ["train", "--search", space(1), f"data.root={scenes}", f"run_dir={schema.output_dir}", *MLP]
    schema.manifest("phase4a_explora").parent.mkdir(parents=True)
    schema.manifest("phase4a_explora").write_text("{}")
    code, _, err = command(*asked)
    assert code == 2
    assert "model.init_from_explora=false" in err
    assert str(schema.explora_checkpoint) in err
    assert not (schema.output_dir / "search").exists()
    assert command(*asked, "model.init_from_explora=false")[0] == 0


def test_a_search_on_changed_data_is_another_search(no_training, scenes, tmp_path, space, command):
    data, run = shutil.copytree(scenes, tmp_path / "data"), tmp_path / "run"
    asked = [f"data.root={data}", f"run_dir={run}", *MLP]
    assert command("train", "--search", space(1), *asked)[0] == 0
    with (data / "index.csv").open("a") as index:
        index.write("\n")
    assert command("train", "--search", space(2), *asked)[0] == 0
    next((data / "images").iterdir()).touch()
    code, _, err = command("train", "--search", space(3), *asked)
    assert (code, "run_dir=" in err) == (2, True)


def test_a_resumed_search_samples_other_trials(no_training, scenes, tmp_path, space, command):
    asked = [f"data.root={scenes}", f"run_dir={tmp_path / 'run'}", *MLP]
    for count in (3, 6):
        assert command("train", "--search", space(count), *asked)[0] == 0
    rates = [trial.params["training.learning_rate"] for trial in study_of(tmp_path / "run").trials]
    assert len(set(rates)) == 6


def test_trials_are_compared_by_the_model_that_ships(no_training, scenes, tmp_path, space, command):
    assert command("train", "--search", space(1), f"data.root={scenes}", f"run_dir={tmp_path / 'run'}", *MLP)[0] == 0
    assert study_of(tmp_path / "run").best_value == 0.3


def test_a_trial_that_fails_is_reported_and_no_trial_at_all_is_an_error(one_process, scenes, tmp_path, space, command):
    only = {"training.learning_rate": {"low": 1e30, "high": 2e30}}
    code, out, err = command(
        "train",
        "--search",
        space(1, space=only),
        f"data.root={scenes}",
        f"run_dir={tmp_path / 'run'}",
        *TINY_MODEL,
        "model.head.kind=mlp",
    )
    assert code == 2
    assert "trial 0: failed" in out
    assert "no trial finished" in err


@pytest.mark.parametrize(
    ("space_of", "message"),
    [
        ({"phase5.folds": {"low": 2, "high": 5}}, "phase5.folds cannot be searched"),
        ({"data.seed": {"low": 0, "high": 5}}, "data.seed cannot be searched"),
        ({"training.learning_rat": {"low": 1, "high": 5}}, "did you mean training.learning_rate"),
        ({"training.loss.name": {"choices": ["focal", "fokal"]}}, "fokal"),
        ({"training.learning_rate": {"low": 0.1, "high": 0.01}}, "is not a range"),
        ({"training.weight_decay": {"low": 0.0, "high": 0.1, "log": True}}, "is not a range"),
        ({"training.epochs": {"from": 1}}, "examples/search.yaml"),
        ({"training.learning_rate": {"low": 0.1, "high": float("inf")}}, "finite"),
    ],
)
def test_a_space_that_cannot_be_is_refused_before_anything_runs(scenes, tmp_path, space, command, space_of, message):
    run = tmp_path / "run"
    code, _, err = command("train", "--search", space(1, space=space_of), f"data.root={scenes}", f"run_dir={run}")
    assert code == 2
    assert message in err
    assert not (run / "search").exists()


def test_the_packaged_example_is_a_search():
    assert read_search(EXAMPLES / "search.yaml").trials == 30


def test_whole_numbers_stay_whole():
    config = SearchConfig(
        trials=1, space={"a": Range(low=2, high=8), "b": Range(low=0.1, high=1), "c": Categorical(choices=(1, None))}
    )
    drawn = optuna.create_study().ask({key: part.distribution() for key, part in config.space.items()}).params
    assert isinstance(drawn["a"], int)
    assert isinstance(drawn["b"], float)
    assert drawn["c"] in (1, None)


def test_a_trial_below_the_median_of_the_others_is_given_up(tmp_path):
    storage = f"sqlite:///{tmp_path / 'study.db'}"
    study = optuna.create_study(storage=storage, study_name="phase1", direction="maximize")
    for _ in range(6):
        done = study.ask()
        for epoch in (1, 2, 3):
            done.report(0.9, epoch)
        study.tell(done, 0.9)
    asked = study.ask()
    watched = searching._TrialConsole(Trial(asked.number, asked._trial_id, tmp_path, storage, prune=True))
    watched.epoch({"epoch": 1, "val_select_mcc": 0.1})
    with pytest.raises(searching._BelowMedian):
        watched.epoch({"epoch": 2, "val_select_mcc": 0.2, "ema_val_select_mcc": 0.3})
    assert study.trials[6].intermediate_values == {1: 0.1, 2: 0.3}
    kept = study.ask()
    patient = searching._TrialConsole(Trial(kept.number, kept._trial_id, tmp_path, storage, prune=False))
    for epoch in (1, 2, 3):
        patient.epoch({"epoch": epoch, "val_select_mcc": 0.1})


def test_trials_at_a_time_with_the_same_settings_have_folders_of_their_own(tmp_path):
    study = optuna.create_study()
    config = SearchConfig(trials=3, space={"training.ema_decay": Categorical(choices=(None, 0.9))})
    for _ in range(3):
        study.enqueue_trial({"training.ema_decay": 0.9})
    running = set()
    asked = searching._next_trials(study, config, {}, tmp_path, 3, running)
    first, second = next(asked).root, next(asked).root
    assert second == first.with_name(f"{first.name}_1")
    running.discard(first)
    assert next(asked).root == first


def test_without_optuna_the_extra_is_named(monkeypatch, scenes, tmp_path, space, command):
    monkeypatch.setitem(sys.modules, "optuna", None)
    code, _, err = command("train", "--search", space(1), f"data.root={scenes}", f"run_dir={tmp_path / 'run'}")
    assert code == 2
    assert "streetvision[search]" in err


def test_the_file_is_named_when_it_cannot_be_read(tmp_path):
    with pytest.raises(ConfigError, match="cannot read"):
        read_search(tmp_path / "none.yaml")


def test_a_study_lies_in_its_run_folder_whatever_that_is_called(tmp_path):
    home = tmp_path / "what?now=#1 %20" / "search"
    home.mkdir(parents=True)
    optuna.create_study(storage=searching._storage(home), study_name="phase1")
    assert [path.name for path in tmp_path.iterdir()] == ["what?now=#1 %20"]
    assert (home / "study.db").is_file()


def test_a_study_that_is_none_is_reported_in_a_line(one_process, scenes, tmp_path, space, command):
    (tmp_path / "run" / "search").mkdir(parents=True)
    (tmp_path / "run" / "search" / "study.db").write_bytes(b"garbage" * 1000)
    code, _, err = command("train", "--search", space(1), f"data.root={scenes}", f"run_dir={tmp_path / 'run'}")
    assert code == 2
    assert "cannot be read as a study" in err
