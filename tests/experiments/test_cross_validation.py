"""Cross-validation of the whole chain, through the command line, on tiny data."""

import csv
import shutil
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import norm
from scipy.stats import t as student_t

from streetvision import load_bundle
from streetvision.contracts.artifact_schema import ArtifactSchema
from streetvision.contracts.progress import Silent
from streetvision.contracts.split_contracts import Index, Row, Split
from streetvision.data.config import CLASS_NAMES
from streetvision.data.scan import scan_images
from streetvision.data.sources.discovery import list_images
from streetvision.data.splitting.splits_json import partition_from_json
from streetvision.eval.bootstrap import bootstrap_intervals, paired_difference
from streetvision.eval.cross_validated import cross_validated_difference, cross_validated_intervals
from streetvision.eval.metrics import METRICS, all_metrics
from streetvision.eval.predictions import Predictions
from streetvision.eval.resampling import Resampling
from streetvision.experiments import chains
from streetvision.experiments.chains import plan_chains, train_chain, without_sources
from streetvision.experiments.cross_validation import _unseen_sources
from streetvision.io.atomic import read_json
from streetvision.models.module import load_classifier
from streetvision.pipeline.config import compose_config
from streetvision.pipeline.console import Console
from streetvision.pipeline.input_size import input_size
from streetvision.pipeline.probe_chain import fit_probe_chain
from streetvision.pipeline.probe_head import FeatureReader
from streetvision.pipeline.run import launch_training
from streetvision.training.features import FeatureCache
from streetvision.training.probe import FeatureBank
from tests.conftest import TINY_MODEL

SMALL = ["cross_validation.folds=2", "cross_validation.repeats=2", "cross_validation.n_resamples=100"]


@pytest.fixture
def cross_validate(scenes, tmp_path, command):
    """Run the command; returns (exit code, output, result or None)."""

    def run(*settings, root=scenes, name="cv"):
        schema = ArtifactSchema(tmp_path / name)
        data = [] if root is None else [f"data.root={root}"]
        arguments = [*data, f"run_dir={schema.output_dir}", *TINY_MODEL, *SMALL, *settings]
        code, out, err = command("cross-validate", *arguments)
        content = read_json(schema.cross_validation_json) if schema.cross_validation_json.is_file() else None
        return code, out + err, content, schema

    return run


def test_every_image_is_predicted_once_in_each_repeat(cross_validate, scenes, tmp_path, command):
    curve = "cross_validation.learning_curve=[0.5]"
    code, out, content, schema = cross_validate(curve)
    assert code == 0, out
    assert content["images"] == 160
    assert len(content["by_repeat"]) == 2
    assert content["metrics"].keys() == METRICS.keys()
    for name, figure in content["metrics"].items():
        assert figure["estimate"] == pytest.approx(np.mean([repeat[name] for repeat in content["by_repeat"]]))
        assert figure["low"] <= figure["estimate"] <= figure["high"]
    assert [point["share"] for point in content["curve"]] == [0.5, 1.0]
    assert content["protocols"] == {"split": 4}
    assert "more images" in schema.cross_validation_html.read_text()
    records = sorted((schema.cross_validation_dir / "chains").glob("*_100_*.json"))
    predicted = [len(read_json(path)["probabilities"]) for path in records]
    assert sum(predicted) == 2 * 160
    # Finished chains are not computed again, but for a changed setting, which does not replace them.
    changed = cross_validate(curve, "training.loss.name=weighted_cross_entropy")
    assert changed[0] == 0
    assert "6, 0 of them finished before" in changed[1]
    assert changed[2] != content
    # The folder belongs to the data, which it keeps.
    for root in (None, scenes):
        assert cross_validate(curve, root=root)[2] == content
    before = schema.cross_validation_json.read_bytes()
    command("data", "scenes", tmp_path / "other", "scenes.count=24", "scenes.width=64", "scenes.height=64")
    for arguments, root in (([], tmp_path / "other"), (["scenes.count=40"], None)):
        code, out, _, _ = cross_validate(curve, *arguments, root=root)
        assert code == 2
        assert "run_dir=" in out
    assert schema.cross_validation_json.read_bytes() == before
    assert not schema.scenes_dir.exists()


def test_finished_chains_are_kept_when_the_images_move(cross_validate, scenes, tmp_path):
    photos, moved = shutil.copytree(scenes, tmp_path / "photos"), tmp_path / "moved"
    curve = "cross_validation.learning_curve=[]"
    chosen = ["data.grouping.radius=4", "data.damaged_images=use", "loader.max_megapixels=150"]
    code, out, first, schema = cross_validate(curve, *chosen, root=photos)
    assert code == 0, out
    photos.rename(moved)
    for root in (moved, None):
        code, out, content, _ = cross_validate(curve, root=root)
        assert code == 0, out
        assert "4, 4 of them finished before" in out
        assert content == first | {"data": "moved"}
    recorded = read_json(schema.cross_validation_data_json)
    assert (recorded["root"], recorded["damaged_images"], recorded["max_megapixels"]) == (str(moved), "use", 150)


@pytest.mark.parametrize("protocol", ["split", "cross_fit"])
def test_a_chain_in_memory_predicts_like_the_bundle_of_a_run(scenes, tmp_path, command, protocol):
    settings = [*(s for s in TINY_MODEL if "protocol" not in s), f"data.protocol={protocol}", f"data.root={scenes}"]
    schema = ArtifactSchema(tmp_path / "run")
    code, out, err = command("train", f"run_dir={schema.output_dir}", *settings)
    assert code == 0, out + err
    partition = partition_from_json(read_json(schema.splits_json), schema.splits_json)
    config, rows = compose_config(settings), partition.index.rows
    reader = FeatureReader.of(
        load_classifier(config.model, input_size(config.model, partition.rows(Split.TRAIN))).backbone, config.model
    )
    cache = FeatureCache(tmp_path / "features", reader.classifier, loader=config.loader, progress=Silent())
    features = cache.features(rows, root=scenes, name="all")[0].numpy()
    chain = fit_probe_chain(features, reader, partition, config)
    test = [position for position, role in enumerate(partition.roles) if role is Split.VAL_TEST]
    p, decisions = chain.predict(FeatureBank(features[test], reader.pooling, reader.layers))
    predictor = load_bundle(schema.export_dir)
    predictions = predictor.predict([scenes / rows[position].path for position in test])
    assert chain.threshold == pytest.approx(predictor.threshold, abs=1e-5)
    assert p == pytest.approx([prediction.probability for prediction in predictions], abs=1e-4)
    assert decisions.tolist() == [prediction.decision == 1 for prediction in predictions]


def test_a_source_is_predicted_without_its_images(scenes, tmp_path, cross_validate):
    rows = list(csv.DictReader((scenes / "index.csv").open()))
    index = tmp_path / "index.csv"
    lines = [f"{scenes / row['path']},{row['label']},g{n // 5},road{n // 54}|{n}" for n, row in enumerate(rows[:-1])]
    index.write_text("\n".join(["path,label,group,source", *lines, f"{scenes / rows[-1]['path']},1,last,"]))
    settings = ["cross_validation.repeats=1", "cross_validation.learning_curve=[]", r"data.source_pattern=(road\d)"]
    code, out, content, schema = cross_validate(*settings, "--leave-out", "source", root=index)
    assert code == 0, out
    unseen = content["unseen"]
    assert [source["name"] for source in unseen["sources"]] == ["road0", "road1", "road2"]
    assert sum(source["images"] for source in unseen["sources"]) == unseen["images"] == len(rows) - 1
    assert unseen["few_sources"]
    assert unseen["metrics"]["mcc"]["low"] <= unseen["metrics"]["mcc"]["estimate"]
    assert "1 images have no source" in out
    assert "of other sources were not trained on" in out
    assert "Unseen sources" in schema.cross_validation_html.read_text()
    # Chain by chain, neither the source nor a group of it is trained on.
    code, out, _, _ = cross_validate(*settings[:2], "cross_validation.leave_out=source", root=scenes, name="two")
    assert code == 0, out
    code, out, _, _ = cross_validate(*settings[:2], "--leave-out", "camera", name="three")
    assert code == 2
    assert "leave_out" in out


def test_one_source_cannot_be_left_out(scenes, tmp_path, cross_validate):
    rows = list(csv.DictReader((scenes / "index.csv").open()))
    index = tmp_path / "index.csv"
    lines = [f"{scenes / row['path']},{row['label']},one" for row in rows]
    index.write_text("\n".join(["path,label,source", *lines]))
    code, out, _, _ = cross_validate("--leave-out", "source", "cross_validation.learning_curve=[]", root=index)
    assert code == 2
    assert "needs images of two sources or more (found: 1)" in out


def test_a_rate_of_a_class_that_a_source_lacks_is_undefined():
    labels, sources = [0, 0, 1, 1, 0, 1], ["no"] * 2 + ["yes"] * 2 + ["both"] * 2
    rows = [Row(f"{n}.jpg", label, f"{n:064d}", 8, 8, 0.5, source=sources[n]) for n, label in enumerate(labels)]
    p = np.array([0.2, 0.7, 0.4, 0.9, 0.1, 0.8])
    unseen = Predictions(labels, p, sources)
    ordinary = Predictions(labels, p)
    found = _unseen_sources(Index(Path(), ("None", "Roadwork"), tuple(rows)), ordinary, unseen, Resampling(50, 0.9, 0))
    rates = {source.name: (source.mcc, source.recall, source.fpr) for source in found.sources}
    assert rates == {"no": (None, None, 0.5), "yes": (None, 0.5, None), "both": (1.0, 1.0, 0.0)}


def test_folds_of_sources_share_neither_source_nor_group():
    rows = [Row(f"{n}.jpg", n % 2, f"{n:064d}", 8, 8, 0.5, group=f"g{n // 2}", source=f"s{n % 50}") for n in range(400)]
    console = Console(silent=True)
    tested = []
    for train, test in without_sources(rows, seed=0, console=console):
        assert not {row.source for row in train} & {row.source for row in test}
        assert not {row.group for row in train} & {row.group for row in test}
        tested += test
    assert len(tested) == len({row.path for row in tested}) == 400


@pytest.fixture
def settings_of_chain(tmp_path, monkeypatch):
    """Returns the settings with which a chain in its own process trains, and the index of its images."""

    def run(*settings, images=80, groups=(None,)):
        rows = [
            Row(f"{n}.jpg", n % 2, f"{n:012d}".ljust(64, "0"), 8, 8, 0.5, group=groups[n // 2 % len(groups)])
            for n in range(images)
        ]
        config = compose_config([*settings, "cross_validation.folds=2", "cross_validation.learning_curve=[]"])
        index = Index(tmp_path, config.data.class_names, tuple(rows))
        chain = next(plan_chains(index, config, tmp_path / "chains", Console(silent=True)))
        composed = []
        monkeypatch.setattr(chains, "write_output_to", lambda log: None)
        monkeypatch.setattr(chains, "launch_training", lambda config, console: composed.append(config) or sys.exit(0))
        with pytest.raises(SystemExit):
            train_chain(chain, 1)
        return composed[0], chain.partition.index

    return run


def test_other_weights_in_the_same_file_are_another_chain(tmp_path):
    weights = tmp_path / "vit.safetensors"
    rows = tuple(Row(f"{n}.jpg", n % 2, f"{n:012d}".ljust(64, "0"), 8, 8, 0.5) for n in range(80))
    model = ["model.backbone.source=timm", "model.backbone.name=test_vit", f"model.backbone.weights={weights}"]
    config = compose_config([*model, "cross_validation.folds=2", "cross_validation.learning_curve=[]"])
    keys = []
    for content in (b"a", b"b"):
        weights.write_bytes(content)
        planned = plan_chains(Index(tmp_path, CLASS_NAMES, rows), config, tmp_path, Console(silent=True))
        keys.append(next(planned).key)
    assert keys[0] != keys[1]


def test_a_chain_has_the_labels_of_the_data_whatever_the_class_names(settings_of_chain):
    config, index = settings_of_chain("data.class_names=['1','0']", "data.protocol=split")
    listed = list_images(config.data.root, class_names=config.data.class_names, import_to=Path("none"))
    labels = {Path(image.path).name: image.label for image in listed.images}
    assert labels == {row.path: row.label for row in index.rows}


def test_a_chain_has_the_groups_of_the_data_whatever_their_names(settings_of_chain):
    groups = ["None", "NA", None, *map(str, range(37))]
    config, index = settings_of_chain("data.protocol=split", groups=groups)
    listed = list_images(config.data.root, class_names=config.data.class_names, import_to=Path("none"))
    found = {Path(image.path).name: image.group for image in listed.images}
    pairs = {(row.group, found[row.path]) for row in index.rows}
    assert len(pairs) == len({first for first, _ in pairs}) == len({second for _, second in pairs}) == len(groups)
    assert (None, None) in pairs


@pytest.mark.parametrize(("protocol", "images"), [("split", 3000), ("cross_fit", 80)])
def test_a_chain_has_folds_where_its_protocol_has(settings_of_chain, protocol, images):
    config, _ = settings_of_chain("data.folds=4", images=images)
    assert config.data.protocol == protocol
    assert ("data.folds" in config.overrides) == (protocol == "cross_fit")


@pytest.mark.parametrize("protocol", ["split", "cross_fit"])
def test_a_chain_keeps_a_source_of_one_class(scenes, tmp_path, monkeypatch, protocol):
    listing = list_images(str(scenes), class_names=CLASS_NAMES, import_to=tmp_path)
    rows = scan_images(listing, class_names=CLASS_NAMES).index.rows
    sources = ["z" if row.label == 0 and n % 40 < 20 else f"s{n // 40 % 2}" for n, row in enumerate(rows)]
    rows = tuple(replace(row, group=None, source=source) for row, source in zip(rows, sources, strict=True))
    settings = [f"data.protocol={protocol}", "cross_validation.folds=2", "cross_validation.learning_curve=[]"]
    config = compose_config([*settings, "cross_validation.leave_out=source"])
    index = Index(scenes, CLASS_NAMES, rows)
    monkeypatch.setattr(chains, "write_output_to", lambda log: None)
    train_data = partial(launch_training, only=["data"])
    monkeypatch.setattr(chains, "launch_training", lambda *args, **named: train_data(*args, **named) and sys.exit(0))
    *_, chain = plan_chains(index, config, tmp_path / "chains", Console(silent=True))
    test = {row.sha256 for row in chain.partition.rows(Split.VAL_TEST)}
    assert test == {row.sha256 for row in rows if row.source == "z"}
    for _ in range(2):
        with pytest.raises(SystemExit) as ended:
            train_chain(chain, 1)
        assert ended.value.code == 0
        path = ArtifactSchema(chain.run_folder).splits_json
        assert {row.sha256 for row in partition_from_json(read_json(path), path).rows(Split.VAL_TEST)} == test


def test_the_head_alone_is_the_default(scenes, tmp_path, command):
    settings = [setting for setting in TINY_MODEL if not setting.startswith("training")]
    arguments = [f"data.root={scenes}", f"run_dir={tmp_path}", *settings, *SMALL, "cross_validation.learning_curve=[]"]
    code, out, err = command("cross-validate", *arguments)
    assert code == 0, out + err
    assert "training=frozen: training=auto would fine-tune in each of 4 chains" in out


@pytest.mark.long
def test_chains_that_train_run_in_processes(command, tmp_path):
    schema, file = ArtifactSchema(tmp_path / "cv"), tmp_path / "settings.yaml"
    file.write_text("data: {source_column: source}\nscenes: {count: 160, width: 96, height: 72}\n")
    settings = ["model.head.kind=mlp", "training.epochs=2", "cross_validation.repeats=1"]
    arguments = [f"run_dir={schema.output_dir}", *TINY_MODEL, *SMALL, *settings, "cross_validation.learning_curve=[]"]
    code, out, err = command("cross-validate", *arguments, "--config", file)
    assert code == 0, out + err
    content = read_json(schema.cross_validation_json)
    assert len(content["by_repeat"]) == 1
    assert content["gain"] is None
    chains = schema.cross_validation_dir / "chains"
    splits = [next(chains.glob(f"repeat0_fold{fold}_100_*/splits.json")) for fold in (0, 1)]
    tests = [{row.sha256 for row in partition_from_json(read_json(p), p).rows(Split.VAL_TEST)} for p in splits]
    assert not tests[0] & tests[1]
    assert sum(map(len, tests)) == 160


@pytest.mark.long
def test_a_chain_that_fails_is_reported(cross_validate):
    settings = ["model.head.kind=mlp", "training.learning_rate=1e30", "cross_validation.learning_curve=[]"]
    code, out, _, _ = cross_validate(*settings)
    assert code in (1, 2)
    assert "failed" in out
    assert "Traceback" not in out


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["cross_validation.folds=200"], "less than or equal to 100"),
        (["cross_validation.learning_curve=[1.5]"], "learning_curve"),
        (["phase5.method=mac_cal"], "mac_cal"),
        (["--jobs", "2"], "`--jobs` has no effect"),
        (["model.init_from_explora=true"], "`model.init_from_explora=true` has no effect"),
        (["cross_validation.learning_curve=[0.5,0.5]"], "learning_curve"),
    ],
)
def test_bad_settings_are_one_error(cross_validate, settings, message):
    code, out, _, _ = cross_validate(*settings)
    assert code == 2
    assert message in out
    assert "Traceback" not in out


@pytest.mark.parametrize(
    ("settings", "missing"),
    [
        (["pipeline.phases=[phase1,phase2]", "phase5.method=platt"], "phase5 and no phase6"),
        (["pipeline.phases=[phase1,phase2]", "model.head.kind=mlp"], "phase5 and no phase6"),
        (["pipeline.phases=[phase1,phase5,phase6]", "phase6.policy=threshold"], "phase2"),
    ],
)
def test_phases_that_make_no_bundle_are_refused_before_the_scan(cross_validate, settings, missing):
    code, out, _, schema = cross_validate(*settings)
    assert code == 2
    assert f"no {missing}" in out
    assert "has no effect" not in out
    assert not schema.data_report_json.exists()


def test_settings_of_other_commands_are_named(cross_validate):
    settings = ["evaluation.n_resamples=200", "reward.seed=1", "phase5.folds=2", "cross_validation.folds=100"]
    assert "evaluation.n_resamples, reward.seed have no effect on cross-validate" in cross_validate(*settings)[1]


def test_fewer_groups_than_folds_are_an_error(scenes, tmp_path, cross_validate):
    rows = list(csv.DictReader((scenes / "index.csv").open()))
    index = tmp_path / "index.csv"
    lines = [f"{scenes / row['path']},{row['label']},g{number % 3}" for number, row in enumerate(rows)]
    index.write_text("\n".join(["path,label,group", *lines]))
    code, out, _, _ = cross_validate("cross_validation.folds=4", "data.grouping.by=[column]", root=index)
    assert code == 2
    assert "has 3 groups, but cross_validation.folds is 4" in out


def test_a_training_run_is_not_overwritten(finished_run, command, scenes):
    code, _, err = command("cross-validate", f"data.root={scenes}", f"run_dir={finished_run}", *TINY_MODEL)
    assert code == 2
    assert "is the folder of a training run" in err


def test_one_repeat_has_the_figures_of_its_predictions():
    generator = np.random.default_rng(0)
    labels = np.arange(200) % 2
    p = np.clip(0.3 + 0.4 * labels + generator.normal(0, 0.2, 200), 0.01, 0.99)
    groups = [f"g{number // 4}" for number in range(200)]
    predictions = Predictions(labels, p, groups, decisions=p > 0.5)
    ours, theirs = cross_validated_intervals([predictions], folds=5), bootstrap_intervals(predictions)
    for name, value in all_metrics(labels, p, p > 0.5).items():
        assert ours[name].estimate == pytest.approx(value)
        assert theirs[name].low - 0.05 < ours[name].low < theirs[name].low + 0.02
        assert theirs[name].high - 0.02 < ours[name].high < theirs[name].high + 0.05
    assert cross_validated_intervals([predictions, predictions], folds=5)["mcc"] == ours["mcc"]


def test_resamples_that_lost_a_class_do_not_widen_the_interval():
    """Two groups of eight have positives: a tenth of the resamples has none."""
    groups = np.repeat(np.arange(8), 20)
    labels = (groups < 2) & (np.arange(160) % 2 == 0)
    wrong = np.isin(np.arange(160), [0, 20, 22, 24, 60, 90])
    predictions = Predictions(labels, np.where(labels ^ wrong, 0.9, 0.1), groups.tolist())
    found = cross_validated_intervals([predictions, predictions], folds=5)
    assert found["recall"].estimate == 0.8
    assert found["recall"].method == "t"
    assert found["recall"].low > 0.5
    assert found["mcc"].low > 0.4


def test_the_interval_is_wider_with_fewer_folds():
    generator = np.random.default_rng(0)
    labels = np.arange(200) % 2
    p = np.clip(0.3 + 0.4 * labels + generator.normal(0, 0.2, 200), 0.01, 0.99)
    predictions = Predictions(labels, p, [f"g{number // 4}" for number in range(200)])
    two, five = (cross_validated_intervals([predictions], folds=folds) for folds in (2, 5))
    for name in ("mcc", "nll", "recall"):
        width = two[name].high - two[name].low, five[name].high - five[name].low
        assert width[0] / width[1] == pytest.approx(np.sqrt(2 / 1.25), rel=1e-6)


def test_a_difference_is_as_much_wider_as_an_interval():
    generator = np.random.default_rng(0)
    labels = np.arange(200) % 2
    groups = [f"g{number // 4}" for number in range(200)]
    worse, better = (
        Predictions(labels, np.clip(0.3 + 0.4 * labels + generator.normal(0, noise, 200), 0.01, 0.99), groups)
        for noise in (0.25, 0.2)
    )
    for folds in (2, 5):
        differences = cross_validated_difference(better, worse, folds=folds)
        for name, plain in paired_difference(better, worse).items():
            widened, factor = (
                differences[name],
                np.sqrt(folds / (folds - 1)) * student_t.ppf(0.975, 49) / norm.ppf(0.975),
            )
            assert widened.estimate == plain.estimate
            assert (widened.high - widened.low) / (plain.high - plain.low) == pytest.approx(factor, rel=1e-6)
            assert (widened.p_value < 0.05) == (widened.low > 0 or widened.high < 0)
            assert widened.p_value >= plain.p_value
