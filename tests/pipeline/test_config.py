from importlib import resources
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streetvision.contracts.errors import ConfigError
from streetvision.pipeline.config import RunConfig, compose_config, groups, settings

WEIGHTS = {"deit_tiny": ["model.backbone.weights=w.safetensors"]}
"""What a packaged YAML leaves for its user to give."""

ADAPT = "pipeline.phases=[phase4a_explora,phase1]"
FUSE = "pipeline.phases=[phase1,phase4c_cvfm]"


FSDP = ["training.hardware.strategy=fsdp", "training.hardware.devices=2"]


@pytest.mark.parametrize(("group", "name"), [(g, n) for g, names in groups().items() for n in names])
def test_every_packaged_yaml_composes(group, name):
    config = compose_config([f"{group}={name}", *WEIGHTS.get(name, [])])
    assert isinstance(config, RunConfig)


@pytest.mark.parametrize("name", ["frozen", "full", "last_n", "peft"])
def test_a_group_reaches_its_section(name):
    assert compose_config([f"training={name}"]).training.mode == name


def test_every_seed_follows_the_pipelines_unless_it_is_set():
    config = compose_config(["pipeline.seed=7", "phase5.seed=3"])
    seeds = (config.data.seed, config.training.seed, config.evaluation.seed, config.phase5.seed)
    assert seeds == (7, 7, 7, 3)


def test_the_run_folder_is_named_after_the_data():
    assert compose_config([]).root.as_posix() == "outputs/scenes"
    assert compose_config(["data.root=some/photos/"]).root.as_posix() == "outputs/photos"
    assert compose_config(["run_dir=here"]).root.as_posix() == "here"


@given(st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1))
def test_any_path_can_be_given(name):
    """Signs that mean something to the grammar of overrides are only signs in a path."""
    if name in {"null", "???"}:
        return
    assert compose_config([f"data.root={name}"]).data.root == name


def test_a_file_of_settings_lies_between_defaults_and_overrides(tmp_path):
    file = tmp_path / "experiment.yaml"
    file.write_text(
        "training: full\nphase2: {n_thresholds: 50}\n"
        "model: {backbone: {name: '${x}'}}\ndata: {class_names: [none, it's]}\n"
    )
    config = compose_config(["phase2.n_thresholds=60"], file=file)
    assert config.training.mode == "full"
    assert config.phase2.n_thresholds == 60
    assert config.data.class_names == ("none", "it's")
    assert config.model.backbone.name == "${x}"


def test_recorded_settings_come_back():
    config = compose_config(["data.root=a 'b' \\ c", "data.fractions.train=0.5", "data.fractions.val_test=0.2"])
    again = compose_config([], base={"data": config.data.model_dump(mode="json")})
    assert again.data == config.data


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.epoch=1", "did you mean training.epochs"),
        ("trainin.epochs=1", "did you mean training.epochs"),
        ("training.epochs", "not a setting"),
        ("training.epochs=0", "greater than or equal to 1"),
        ("training.epochs=1.5", "training.epochs=1.5"),
        ("+training.epochs=3", "is not a setting"),
        ("~training", "is not a setting"),
        ("model=resnet", "there is no model 'resnet'"),
        ("model=deit_tiny", "model.backbone.weights has no default"),
        ("data.fractions.train=0.9", "fractions sum to 1"),
        ("data.class_names=[a,a]", "two different names"),
        ("model.backbone.width=64", "does not read width"),
        ("training.precision=bf16", "training.precision=bf16 is not read by training.mode=frozen"),
        ("model.head.hidden=64", "a linear head does not read hidden"),
        ("augmentation.flip_probability=0.1", "augmentation is not read by training.mode=frozen"),
        ("training.layer_decay=0.5", "training.layer_decay=0.5 is not read by training.mode=frozen"),
        ("training.adapter.rank=4", "is not read by training.mode=frozen"),
        ("training.hardware.devices=2", "is not read by training.mode=frozen"),
        ("training.tracker_offline=false", "is not read without a tracker"),
        ("training.compile.stance=performance", "fail_on_recompile"),
        ("training.loss.gamma=1", "does not read gamma"),
        ("training.gradient_accumulation_steps=3", "is not read by training.mode=frozen"),
        ("loader.cache_image_size=256", "loader.cache_image_size is not read by training.mode=frozen"),
        ("data=photos", "there is no data 'photos'"),
        ("loader.max_megapixels=500", "less than or equal to 178"),
    ],
)
def test_a_wrong_setting_says_what_is_wrong(override, message):
    with pytest.raises(ConfigError, match=message.replace(".", r"\.")):
        compose_config([override])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["training=full", "training.gradient_accumulation_steps=3"], "cannot be cut into 3 parts"),
        (["training=full", "training.hardware.strategy=fsdp"], "there is one"),
        (["training=full", *FSDP, "training.ema_decay=0.9"], "neither ema_decay nor compile"),
        (["training=full", *FSDP, "training.compile.enabled=true"], "neither ema_decay nor compile"),
        ([f"phase4a.{name.removeprefix('training.')}" for name in FSDP], "keeps whole weights in every process"),
        ([ADAPT, "model.explora_checkpoint_path=a.pth"], "leave out one of the two"),
        ([ADAPT, "phase4a.hardware.devices=2"], "one command starts its processes once"),
        (["phase4a.hardware.devices=2", "phase4a.grad_cache_chunk=8"], "phase4a.grad_cache_chunk runs in one process"),
        ([FUSE, "phase4c=single_view"], "phase4c_cvfm has nothing to do under phase4c.mode=single_view"),
        (["phase4c=cvfm", "phase6.policy=threshold"], "phase6.policy=threshold cuts the scores of single views"),
        (["phase4c=cvfm", "phase5.method=mac_cal"], "phase5.method=mac_cal retrains the head on single views"),
        (
            ["phase4c.mode=cvfm_inference", "phase4c.epochs=3"],
            "phase4c.epochs is not read by phase4c.mode=cvfm_inference",
        ),
        (["training=full", "training.adapter.rank=4"], "is not read by training.mode=full"),
        (["training=peft", "training.layer_decay=0.5"], "is not read by training.mode=peft"),
        (["training=full", "training.hardware.devices=2", "augmentation.gate.epochs=1"], "runs in one process"),
    ],
)
def test_settings_that_do_not_go_together_say_so(overrides, message):
    with pytest.raises(ConfigError, match=message.replace(".", r"\.")):
        compose_config(overrides)


def test_who_asks_for_phase_4c_alone_gets_the_fusion_that_learns(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("pipeline: {phases: [phase1, phase4c_cvfm]}\n")
    packaged = compose_config(["phase4c=cvfm"]).phase4c
    assert compose_config([FUSE]).phase4c == compose_config([], file=file).phase4c == packaged
    assert compose_config([FUSE, "phase4c.mode=multiview_mean"]).phase4c.mode == "multiview_mean"
    assert compose_config([FUSE, "phase4c.epochs=3"]).phase4c == packaged.model_copy(update={"epochs": 3})
    assert compose_config([]).phase4c.mode == "single_view"


def test_the_demo_is_the_whole_runtime_order():
    demo = compose_config([], file=Path(str(resources.files("streetvision"))) / "configs" / "demo.yaml")
    assert demo.pipeline.phases == ("phase4a_explora", "phase1", "phase2", "phase4c_cvfm", "phase5", "phase6")
    assert demo.phase4c.mode == "cvfm_trained"


def test_scenes_are_not_drawn_where_there_is_data():
    with pytest.raises(ConfigError, match="leave out one of the two"):
        compose_config(["data.root=photos", "scenes.count=5"])


def test_every_setting_has_a_description():
    """The line under a field is what a reader has; pydantic must be able to find one for each."""
    import ast
    import inspect

    def described(model):
        body = ast.parse(inspect.getsource(model)).body[0].body
        for statement, after in zip(body, [*body[1:], None], strict=True):
            if isinstance(statement, ast.AnnAssign):
                is_text = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
                yield statement.target.id, is_text

    sections = [field.annotation for field in RunConfig.model_fields.values() if hasattr(field.annotation, "mro")]
    bare = [(s.__name__, name) for s in sections for name, has in described(s) if not has]
    assert bare in ([], [("ModelConfig", "backbone"), ("ModelConfig", "head")])


def test_every_key_is_listed_once():
    names = [name for name, _ in settings()]
    assert len(names) == len(set(names))
    assert {"run_dir", "training.epochs", "data.fractions.train", "model.backbone.name"} <= set(names)


def test_the_example_of_natix_is_a_configuration():
    example = Path(__file__).parent.parent.parent / "examples" / "natix_roadwork.yaml"
    config = compose_config([], file=example)
    assert config.data.grouping.by == ("column", "near_duplicates", "place")
    assert config.model.backbone.source == "transformers"


def test_phase_1_starts_from_the_adapted_backbone_when_the_adaptation_is_asked_for():
    assert compose_config([]).settled.model.init_from_explora is False
    assert compose_config([ADAPT]).settled.model.init_from_explora is True
    assert compose_config([ADAPT, "model.init_from_explora=false"]).settled.model.init_from_explora is False
    assert compose_config(["model.init_from_explora=true"]).settled.model.init_from_explora is True


def test_values_from_outside_refer_to_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("SECRET", "s3cret")
    file = tmp_path / "run.yaml"
    file.write_text("data: {class_names: ['${oc.env:SECRET}', b], root: '\\${oc.env:SECRET}'}")
    config = compose_config([], file=file)
    assert config.data.class_names == ("${oc.env:SECRET}", "b")
    assert config.data.root == "\\${oc.env:SECRET}"
    given = compose_config(["data.class_names=['${oc.env:SECRET}',b]", "training.seed=7", "pipeline.seed=3"])
    assert given.data.class_names == ("${oc.env:SECRET}", "b")
    assert (given.training.seed, given.phase4a.seed) == (7, 3)
