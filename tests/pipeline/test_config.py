import shlex
from importlib import resources
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from streetvision.contracts.errors import ConfigError
from streetvision.models.config import ModelConfig
from streetvision.pipeline.config import compose_config, groups, settings_sha256
from streetvision.pipeline.settings import RunConfig, all_settings
from streetvision.pipeline.settings_reference import description

CONFIGS = Path(str(resources.files("streetvision"))) / "configs"
NEEDED = {
    "deit_tiny": ["model.backbone.weights=w.safetensors"],
    "compile": ["training=peft"],
    "dora": ["training=peft"],
}
"""Settings that a packaged YAML file needs."""

ADAPT = "pipeline.phases=[phase4a_explora,phase1]"
ADAPT_ALONE = "pipeline.phases=[phase4a_explora]"
FUSE = "pipeline.phases=[phase1,phase4c_cvfm]"


FSDP = ["hardware.strategy=fsdp", "hardware.devices=2"]


@pytest.mark.parametrize(("group", "name"), [(g, n) for g, names in groups().items() for n in names])
def test_every_packaged_yaml_composes(group, name):
    config = compose_config([f"{group}={name}", *NEEDED.get(name, [])])
    assert isinstance(config, RunConfig)


@pytest.mark.parametrize("name", ["frozen", "full", "last_n", "peft"])
def test_a_group_reaches_its_section(name):
    assert compose_config([f"training={name}"]).training.mode == name


def test_every_seed_defaults_to_pipeline_seed():
    config = compose_config(["pipeline.seed=7", "phase5.seed=3"])
    seeds = (config.data.seed, config.training.seed, config.evaluation.seed, config.phase5.seed)
    assert seeds == (7, 7, 7, 3)


def test_the_run_folder_is_named_after_the_data():
    assert compose_config([]).root.as_posix() == "outputs/scenes"
    assert compose_config(["data.root=some/photos/"]).root.as_posix() == "outputs/photos"
    assert compose_config(["run_dir=folder"]).root.as_posix() == "folder"
    for labels in ("some/mine", "some/mine/labels.parquet"):
        assert compose_config([f"data.labels={labels}"]).root.as_posix() == "outputs/mine-training"


@given(st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1))
def test_any_path_can_be_given(name):
    """Characters with a meaning in the grammar of overrides have none in a path."""
    if name in {"null", "???"}:
        return
    assert compose_config([f"data.root={name}"]).data.root == name


def test_a_config_file_overrides_defaults_and_is_overridden_by_arguments(tmp_path):
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


def test_recorded_settings_compose_to_the_same_values():
    config = compose_config(["data.root=a 'b' \\ c", "data.fractions.train=0.5", "data.fractions.val_test=0.2"])
    composed = compose_config([], base={"data": config.data.model_dump(mode="json")})
    assert composed.data == config.data


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
        ("data.fractions.train=0.9", "fractions must sum to 1"),
        ("data.class_names=[a,a]", "two different names"),
        ("data=photos", "there is no data 'photos'"),
        ("loader.max_megapixels=500", "less than or equal to 178"),
        ("training.mode=froze", "did you mean 'frozen'"),
        ("training.loss.name=focl", "did you mean 'focal'"),
        ("phase2.optimize_metric=f1", "choose one of: mcc"),
        ("hardware.compiler.stance=performance", "set hardware.compiler.stance=default"),
        ("phase4a.mixed_precision.dtype=fp16", "choose one of: bf16"),
        ("phase4a.mixed_precision.enabled=maybe", "'auto'"),
    ],
)
def test_a_wrong_setting_is_an_error_that_names_the_cause(override, message):
    with pytest.raises(ConfigError, match=message):
        compose_config([override])


@pytest.mark.parametrize(
    "setting", ["run_dir=", "data.labels=", "data.unlabeled=['']", "model.explora_checkpoint_path="]
)
def test_an_empty_path_is_refused(setting):
    key, _, value = setting.partition("=")
    with pytest.raises(ConfigError, match=f"{key} is an empty path"):
        compose_config([setting])
    with pytest.raises(ConfigError, match=f"{key} is an empty path"):
        compose_config([], base={key: [""] if value else ""})
    compose_config([f"{key}={'[]' if value else 'null'}"])


@pytest.mark.parametrize(
    ("override", "setting"),
    [
        ("data.class_names=None,Roadwork", ["data.class_names=[None,Roadwork]"]),
        ("data.class_names=no, yes", ['data.class_names=["no","yes"]']),
        ("data.class_names=[no,yes]", ['data.class_names=["no","yes"]']),
        ("augmentation.scales=0.5,0.25", ["augmentation.scales=[0.5,0.25]"]),
    ],
)
def test_the_hint_of_a_list_is_a_setting_that_is_read(override, setting):
    with pytest.raises(ConfigError) as caught:
        compose_config([override])
    assert shlex.split(caught.value.hint)[-1:] == setting
    compose_config(setting)


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("phase4", "phase4a or phase4b or phase4c"),
        ("multiview.cvfm.mode", "did you mean model.multiview.cvfm.mode?"),
        ("use_rslora", "did you mean training.adapter.use_rslora?"),
        ("training.foo", "training has: training.adapter, training.batch_size"),
        ("training.loss.foo", "training.loss has: training.loss.alpha"),
        ("zzz", "SECTION.NAME, such as training.epochs; sections: augmentation, cross_validation, data"),
    ],
)
def test_an_unknown_key_suggests_the_nearest_keys_or_those_of_its_section(key, hint):
    with pytest.raises(ConfigError) as error:
        compose_config([f"{key}=1"])
    assert hint in error.value.hint
    assert len(error.value.hint) < 900


@pytest.mark.parametrize(
    ("overrides", "key", "choice"),
    [
        (["training=frozen", "training.layer_decay=0.5"], "training.layer_decay", "training.mode=frozen"),
        (["training.adapter.rank=4"], "training.adapter.rank", "training.mode=auto"),
        (["training=full", "training.adapter.rank=4"], "training.adapter.rank", "training.mode=full"),
        (["training=peft", "training.layer_decay=0.5"], "training.layer_decay", "training.mode=peft"),
        (["training=frozen", "training.micro_batch_size=8"], "training.micro_batch_size", "training.mode=frozen"),
        (["phase4b=dora"], "training.adapter", "training.mode=auto"),
        (["training.loss.gamma=1"], "training.loss.gamma", "training.loss.name=cross_entropy"),
        (["model.head.hidden=64"], "model.head.hidden", "model.head.kind=linear"),
        (["phase4a.method=byol", "phase4a.temperature=0.2"], "phase4a.temperature", "phase4a.method=byol"),
        (["phase4c.mode=cvfm_inference", "phase4c.epochs=3"], "phase4c.epochs", "phase4c.mode=cvfm_inference"),
        (["phase4c.views.rows=2"], "phase4c.views.rows", "phase4c.mode=single_view"),
        (["phase4c=dense", "phase4c.views.rows=2"], "phase4c.views.rows", "phase4c.mode=dense"),
        (["phase4c=mil", "phase4c.pooling.k=2"], "phase4c.pooling.k", "phase4c.pooling.name=lse"),
        (
            ["phase4c.mode=multiview_mean", "phase4c.inference.k=2"],
            "phase4c.inference.k",
            "phase4c.mode=multiview_mean",
        ),
        (["phase4c.mode=cvfm_inference", "phase4c.inference.k=2"], "phase4c.inference.k", "inference.mode=simple_mean"),
        (["phase5.method=platt", "phase5.mcc_guard=0.1"], "phase5.mcc_guard", "phase5.method=platt"),
        (["training=frozen", "augmentation.flip_probability=0.1"], "augmentation", "training.mode=frozen"),
        (["training=frozen", "loader.cache_image_size=256"], "loader.cache_image_size", "training.mode=frozen"),
        (["training=frozen", "hardware.devices=2"], "hardware.devices", "training.mode=frozen"),
        (["training=frozen", "hardware=compile"], "hardware.compile", "training.mode=frozen"),
        (["training=frozen", "hardware.channels_last=true"], "hardware", "training.mode=frozen"),
        (["training=frozen", "training.epochs=3"], "training.epochs", "a linear head"),
        (["training=frozen", "model.head.dropout=0.1"], "model.head.dropout", "a linear head"),
        (["model.image_size=native", "model.image_tokens=200"], "model.image_tokens", "model.image_size=native"),
        (["training=full", "hardware.compiler.fullgraph=true"], "hardware.compiler", "hardware.compile=false"),
        (["training=full", "hardware.strategy=fsdp"], "hardware.strategy=fsdp", "there is one process"),
        ([ADAPT_ALONE, *FSDP], "hardware.strategy=fsdp", "phase1 is not in pipeline.phases"),
        (["training.tracker_offline=false"], "training.tracker_offline", "training.tracker=none"),
        (["data.root=photos", "scenes.count=5"], "scenes", "data.root is set"),
        (
            ["model.multiview.cvfm.mode=inference"],
            "model.multiview.cvfm.mode",
            "phase4c_cvfm is not in pipeline.phases",
        ),
        (
            [FUSE, "phase4c.mode=multiview_mean", "model.multiview.cvfm.mode=inference"],
            "model.multiview.cvfm.mode",
            "phase4c.mode=multiview_mean",
        ),
    ],
)
def test_a_setting_without_effect_is_refused(overrides, key, choice):
    with pytest.raises(ConfigError) as error:
        compose_config(overrides)
    assert error.value.message.startswith(f"`{key}` has no effect when ")
    assert choice in error.value.message
    assert error.value.hint


def test_the_hint_names_the_choices_that_have_the_setting():
    with pytest.raises(ConfigError, match=r"set training\.mode=last_n, or leave training\.last_blocks out"):
        compose_config(["training.last_blocks=4"])
    with pytest.raises(ConfigError, match=r"set training\.mode=auto or last_n or full"):
        compose_config(["training=frozen", "training.layer_decay=0.4"])


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["training=full", "training.micro_batch_size=5"], ["training.batch_size=32", "training.micro_batch_size=5"]),
        ([ADAPT, "training=full", "phase4a.batch_size=15", "hardware.devices=2"], ["phase4a.batch_size=15"]),
        (["training=full", *FSDP, "training.ema_decay=0.9"], ["fsdp", "training.ema_decay"]),
        (["training=full", *FSDP, "hardware.compile=true"], ["fsdp", "hardware.compile"]),
        (["phase4a.method=group"], ["phase4a.method=group", "phase4a.views.positives=same_image"]),
        (["phase4a.method=diet", "phase4a.views.positives=same_group"], ["phase4a.method=diet", "same_group"]),
        ([ADAPT, "model.explora_checkpoint_path=a.pth"], ["model.explora_checkpoint_path", "phase4a_explora"]),
        ([ADAPT, "training=full", "hardware.devices=2", "phase4a.grad_cache_chunk=8"], ["phase4a.grad_cache_chunk"]),
        ([FUSE, "phase4c=single_view"], ["phase4c_cvfm", "phase4c.mode=single_view"]),
        (["phase4c=cvfm", "phase6.policy=threshold"], ["phase6.policy=threshold", "phase4c.mode=cvfm_trained"]),
        (["phase4c=cvfm", "phase5.method=mac_cal"], ["phase5.method=mac_cal", "phase4c.mode=cvfm_trained"]),
        (["training=full", "hardware.devices=2", "augmentation.gate=on"], ["augmentation.gate"]),
        (["training=full", "model.head.kind=mlp", "training.gate=off"], ["training.gate"]),
        (["training=full", "training.loss.name=focal", "training.gate=only_report"], ["training.gate"]),
        (["model.backbone.width=64"], ["width"]),
        (["hardware.devices=2"], ["training.mode=auto"]),
    ],
)
def test_contradicting_settings_are_refused(overrides, parts):
    with pytest.raises(ConfigError) as error:
        compose_config(overrides)
    assert all(part in error.value.message for part in parts)


def test_a_mode_has_the_same_defaults_by_key_and_by_group():
    for mode in ("frozen", "peft", "last_n", "full"):
        assert compose_config([f"training.mode={mode}"]).training == compose_config([f"training={mode}"]).training
    assert compose_config(["phase4c=cvfm", "phase4c.mode=multiview_mean"]).phase4c.mode == "multiview_mean"


def test_short_names_of_losses_are_aliases():
    short, name = (compose_config([f"training.loss.name={n}"]) for n in ("weighted_ce", "weighted_cross_entropy"))
    assert settings_sha256(short) == settings_sha256(name)
    assert compose_config(["training.loss.name=ce"]).training.loss == compose_config([]).training.loss


def test_the_groups_of_the_specification_compose():
    """Tasks 25 to 27, 44 to 47, 59, 60, 94, 138, 152, 187 and 196 to 198."""
    config = compose_config(["training=optimization", "phase4b=dora", "phase2=mcc", "phase5=scrc"])
    assert (config.phase2.n_thresholds, config.phase2.optimize_metric, config.phase2.save_sweep_curve) == (
        5000,
        "mcc",
        True,
    )
    compiler = config.hardware.compiler
    assert (compiler.mode, compiler.fullgraph, compiler.dynamic, compiler.stance) == (
        "max-autotune",
        True,
        False,
        "default",
    )
    assert config.hardware.compile == "auto"
    assert config.training.mixed_precision.enabled == "auto"
    adapter = config.training.adapter
    assert (adapter.use_dora, adapter.use_rslora, adapter.init_lora_weights) == (True, True, "pissa")
    model = compose_config(["model=dinov3_vith16", "model.init_from_explora=true"]).model
    assert model.backbone.name == "facebook/dinov3-vith16plus-pretrain-lvd1689m"
    assert (model.init_from_explora, model.explora_checkpoint_path, model.multiview.cvfm.mode) == (
        True,
        None,
        "trained",
    )


@pytest.mark.parametrize(
    ("file", "section"),
    [
        ("phase2/mcc", "phase2"),
        ("phase5/scrc", "phase5"),
        ("evaluation/default", "evaluation"),
        ("data/augmentation", "augmentation"),
        ("phase4a/explora", "phase4a"),
        ("hardware/default", "hardware"),
    ],
)
def test_a_default_group_file_equals_the_defaults_of_the_model(file, section):
    """These files list keys of the specification, with the defaults of the models."""
    values = yaml.safe_load((CONFIGS / f"{file}.yaml").read_text())
    default = type(getattr(compose_config([]), section))()
    dumped = default.model_dump(mode="json")
    assert {key: dumped[key] for key in values} == values


def test_phase4c_cvfm_alone_selects_mil_unless_a_setting_of_the_trained_fusion_is_given(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("pipeline: {phases: [phase1, phase4c_cvfm]}\n")
    packaged = compose_config(["phase4c=mil"]).phase4c
    assert compose_config([FUSE]).phase4c == compose_config([], file=file).phase4c == packaged
    assert compose_config([FUSE, "phase4c.views.rows=2"]).phase4c.mode == "mil"
    assert compose_config([FUSE, "phase4c.epochs=2"]).phase4c.mode == "cvfm_trained"
    assert compose_config([FUSE, "phase4c.dense_ratio=2"]).phase4c.mode == "dense"
    assert compose_config([FUSE, "model.multiview.cvfm.mode=inference"]).phase4c.mode == "cvfm_inference"
    assert compose_config([FUSE, "phase4c.mode=multiview_mean"]).phase4c.mode == "multiview_mean"
    assert compose_config([]).phase4c.mode == "single_view"


def test_the_demo_runs_every_phase():
    demo = compose_config([], file=CONFIGS / "demo.yaml")
    assert demo.pipeline.phases == ("phase4a_explora", "phase1", "phase2", "phase4c_cvfm", "phase5", "phase6")
    assert demo.phase4c.mode == "mil"


def test_every_key_is_listed_once_and_has_a_description():
    keys = all_settings()
    assert {"run_dir", "training.epochs", "training.adapter.rank", "data.fractions.train"} <= set(keys)
    assert [key for key, setting in keys.items() if not description(setting)] == []


def test_a_default_in_a_nested_section_is_that_of_its_variant():
    defaults = all_settings()["training.mixed_precision.enabled"].defaults
    assert (defaults["training.mode=frozen"], defaults["training.mode=full"]) == (False, "auto")


def test_the_natix_example_composes():
    example = Path(__file__).parent.parent.parent / "examples" / "natix_roadwork.yaml"
    config = compose_config([], file=example)
    assert config.data.grouping.by == ("column", "near_duplicates", "place")
    assert config.model.backbone.source == "transformers"


def test_phase1_starts_from_the_adapted_backbone_when_phase4a_is_requested():
    assert compose_config([]).sections()[ModelConfig].init_from_explora is False
    assert compose_config([ADAPT]).sections()[ModelConfig].init_from_explora is True
    assert compose_config([ADAPT, "model.init_from_explora=false"]).sections()[ModelConfig].init_from_explora is False
    assert compose_config(["model.init_from_explora=true"]).sections()[ModelConfig].init_from_explora is True


def test_values_from_users_are_not_interpolated(tmp_path, monkeypatch):
    monkeypatch.setenv("SECRET", "s3cret")
    file = tmp_path / "run.yaml"
    file.write_text("data: {class_names: ['${oc.env:SECRET}', b], root: '\\${oc.env:SECRET}'}")
    config = compose_config([], file=file)
    assert config.data.class_names == ("${oc.env:SECRET}", "b")
    assert config.data.root == "\\${oc.env:SECRET}"
    config = compose_config(["data.class_names=['${oc.env:SECRET}',b]", "training.seed=7", "pipeline.seed=3"])
    assert config.data.class_names == ("${oc.env:SECRET}", "b")
    assert (config.training.seed, config.phase4a.seed) == (7, 3)


def test_defaults_replace_what_the_command_does_not_set_at_any_depth():
    from streetvision.data.config import DataConfig, GroupingConfig

    recorded = DataConfig(root="photos", seed=1, class_names=("a", "b"), grouping=GroupingConfig(radius=14))
    config = compose_config(["data.grouping.by=[column,place]", "data.grouping.metres=50", "data.seed=3"])
    data = config.with_defaults({"data": dict(recorded)}).data
    assert (data.root, data.class_names, data.seed) == ("photos", ("a", "b"), 3)
    assert (data.grouping.by, data.grouping.metres, data.grouping.radius) == (("column", "place"), 50, 14)


@pytest.mark.parametrize("value", [".inf", ".nan"])
def test_a_number_must_be_finite(value):
    with pytest.raises(ConfigError, match="budget_minutes"):
        compose_config([f"training.budget_minutes={value}"])
