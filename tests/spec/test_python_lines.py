"""The Python lines of the specification, with the package prefix."""

import inspect
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from sklearn.metrics import matthews_corrcoef
from torch import nn
from torchvision.transforms import v2

from streetvision.contracts.artifact_schema import ArtifactSchema
from streetvision.contracts.errors import ConfigError
from streetvision.contracts.split_contracts import MAY_OPEN, Split
from streetvision.pipeline.config import compose_config
from tests.spec.lines import CONFIGS, run_python

spec = pytest.mark.spec
PROPERTIES = {
    10: ("phase2_dir", "phase2"),
    11: ("thresholds_json", "phase2/thresholds.json"),
    12: ("threshold_sweep_csv", "phase2/threshold_sweep.csv"),
    13: ("mcc_curve_plot", "phase2/mcc_curve.png"),
    98: ("explora_checkpoint", "phase4a_explora/explora_checkpoint.pth"),
    130: ("cvfm_weights", "phase4c_cvfm/cvfm_weights.pth"),
    154: ("scrc_params_json", "phase5_scrc/scrc_params.json"),
    169: ("bundle_json", "export/bundle.json"),
    189: ("evaluation_report_json", "evaluation/evaluation_report.json"),
}
FOLDERS = {
    14: "phase2_dir",
    99: "phase4a_dir",
    131: "phase4c_dir",
    155: "phase5_dir",
    170: "export_dir",
    190: "evaluation_dir",
}
MODULES = {
    9: "contracts/artifact_schema.py",
    16: "eval/thresholds.py",
    28: "pipeline/steps/sweep_thresholds.py",
    36: "models/module.py",
    48: "data/augmentation.py",
    51: "pipeline/steps/train_baseline.py",
    118: "pipeline/steps/train_cvfm.py",
    122: "models/multi_view.py",
    141: "pipeline/steps/calibrate_scrc.py",
    161: "pipeline/steps/export_bundle.py",
    176: "pipeline/steps/evaluate_model.py",
}
FILES = {
    25: "phase2/mcc.yaml",
    44: "training/optimization.yaml",
    58: "data/augmentation.yaml",
    84: "phase4a/explora.yaml",
    117: "phase4c/cvfm.yaml",
    152: "phase5/scrc.yaml",
    187: "evaluation/default.yaml",
}


def yaml(name):
    return OmegaConf.load(CONFIGS / name)


@spec(4)
def test_the_configuration_has_all_folders():
    for folder in ("phase2", "phase4a", "phase4b", "phase4c", "phase5", "data", "training", "evaluation"):
        assert list((CONFIGS / folder).glob("*.yaml")), folder


@spec(5, 6, 8)
def test_the_versions_and_the_package():
    assert sys.version_info >= (3, 11)
    assert tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 6)
    line = """python -c "from contracts.artifact_schema import ArtifactSchema; print('OK')" """
    assert run_python(line) == "OK"


@spec(*PROPERTIES)
@pytest.mark.parametrize(("name", "path"), PROPERTIES.values())
def test_a_property_of_the_schema(name, path):
    code = f"from contracts.artifact_schema import ArtifactSchema; a=ArtifactSchema(Path('test')); print(a.{name})"
    assert run_python(f'python -c "{code}"') == f"test/{path}"


@spec(*FOLDERS)
@pytest.mark.parametrize("name", FOLDERS.values())
def test_a_folder_of_the_schema(name, tmp_path):
    schema = ArtifactSchema(tmp_path / "run")
    schema.ensure_dirs()
    assert getattr(schema, name).is_dir()


@spec(98, 130, 154)
def test_other_properties_of_the_schema():
    schema = ArtifactSchema(Path("test"))
    assert schema.explora_checkpoint.parent == schema.phase4a_dir
    assert schema.cvfm_weights.parent == schema.phase4c_dir
    assert schema.scrc_params_pkl == schema.phase5_dir / "scrc_params.pkl"


@spec(15)
def test_the_schema_of_phase_2(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    line = (
        'python -c "from contracts.artifact_schema import ArtifactSchema; from pathlib import Path; '
        "a=ArtifactSchema(Path('test')); a.ensure_dirs(); assert a.phase2_dir.exists(); print('OK')\""
    )
    assert run_python(line) == "OK"


@spec(*MODULES)
@pytest.mark.parametrize("path", MODULES.values())
def test_a_module_is_where_the_specification_has_it(path):
    assert (CONFIGS.parent / path).is_file()


@spec(*FILES)
@pytest.mark.parametrize("path", FILES.values())
def test_a_configuration_file_is_valid_yaml(path):
    assert OmegaConf.to_container(yaml(path))


@spec(17, 18, 19, 20, 21, 22)
def test_the_threshold_is_the_best_of_all_and_has_all_metrics():
    from streetvision.eval.thresholds import select_threshold_max_mcc

    parameters = inspect.signature(select_threshold_max_mcc).parameters
    assert list(parameters)[:4] == ["logits", "labels", "n_thresholds", "return_curve"]
    assert (parameters["n_thresholds"].default, parameters["return_curve"].default) == (5000, False)
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(200, 2, generator=generator), torch.randint(0, 2, (200,), generator=generator)
    threshold, mcc, metrics = select_threshold_max_mcc(logits, labels, return_curve=True)
    probabilities = torch.softmax(logits.double(), dim=1)[:, 1].numpy()
    by_loop = [matthews_corrcoef(labels, probabilities >= cut) for cut in np.unique(probabilities)]
    assert mcc == pytest.approx(max(by_loop))
    assert matthews_corrcoef(labels, probabilities >= threshold) == pytest.approx(mcc)
    assert len(metrics["curve"]["thresholds"]) == 5000
    assert {"accuracy", "precision", "recall", "f1", "fnr", "fpr", "mcc"} <= metrics.keys()


@spec(23)
def test_the_plot_of_the_curve_has_two_panels(tmp_path):
    from streetvision.eval.thresholds import plot_mcc_curve, select_threshold_max_mcc

    logits, labels = torch.randn(50, 2), torch.arange(50) % 2
    _, _, metrics = select_threshold_max_mcc(logits, labels, n_thresholds=100, return_curve=True)
    picture = plot_mcc_curve(metrics, tmp_path / "x.png")
    assert (tmp_path / "x.png").read_bytes() == picture
    assert picture.startswith(b"\x89PNG")


@spec(24)
def test_the_line_that_selects_a_threshold():
    line = (
        'python -c "from streetvision.eval.thresholds import select_threshold_max_mcc; import torch; '
        "logits=torch.randn(100,2); labels=torch.randint(0,2,(100,)); "
        "thresh,mcc,metrics=select_threshold_max_mcc(logits,labels,n_thresholds=100); "
        "print(f'Best: {thresh:.3f}, MCC: {mcc:.3f}')\""
    )
    assert run_python(line).startswith("Best: ")


@spec(26, 46, 153)
def test_the_groups_of_the_main_configuration():
    config = compose_config(["phase2=mcc", "phase5=scrc", "training=optimization", "evaluation=default"])
    assert config.phase2.n_thresholds == 5000
    assert config.training.mode == "peft"
    for method in ("ensemble", "multi_objective"):
        assert compose_config([f"phase5.method={method}"]).phase5.method == method


@spec(27, 47)
@pytest.mark.parametrize(
    ("code", "printed"),
    [
        ("cfg=OmegaConf.load('configs/phase2/mcc.yaml'); print(cfg.n_thresholds)", "5000"),
        ("cfg=OmegaConf.load('configs/training/optimization.yaml'); print(cfg.mixed_precision.enabled)", "auto"),
    ],
)
def test_the_lines_that_load_a_configuration(code, printed):
    assert run_python(f'python -c "from omegaconf import OmegaConf; {code}"') == printed


@spec(25)
def test_the_values_of_phase_2():
    assert yaml("phase2/mcc.yaml") == {"n_thresholds": 5000, "optimize_metric": "mcc", "save_sweep_curve": True}


@spec(37, 42)
def test_the_focal_loss():
    line = (
        'python -c "from models.module import FocalLoss; import torch; loss=FocalLoss(); logits=torch.randn(10,2); '
        'labels=torch.randint(0,2,(10,)); print(loss(logits,labels))"'
    )
    assert run_python(line).startswith("tensor(")
    from streetvision.models.module import FocalLoss

    logits, labels = torch.randn(10, 2), torch.arange(10) % 2
    p = torch.softmax(logits, 1)[torch.arange(10), labels]
    expected = (-((1 - p) ** 2) * p.log()).mean()
    torch.testing.assert_close(FocalLoss(gamma=2.0)(logits, labels), expected)


@spec(38)
@pytest.mark.parametrize("name", ["ce", "focal", "weighted_ce"])
def test_the_loss_can_be_selected(name):
    assert compose_config([f"training.loss.name={name}"]).training.loss


@pytest.mark.slow
@spec(39, 43, 54)
@pytest.mark.parametrize("compiled", [False, True])
def test_the_model_is_compiled_if_the_configuration_says_so(compiled):
    model = "{'backbone': {'source': 'random', 'width': 32, 'depth': 1, 'heads': 2}, 'image_size': 64}"
    line = (
        'python -c "from models.module import create_model_with_compile; from omegaconf import OmegaConf; '
        f"cfg=OmegaConf.create({{'hardware':{{'compile':{compiled}}},'model':{model}}}); "
        'model=create_model_with_compile(cfg); print(type(model).__name__)"'
    )
    assert run_python(line) == ("OptimizedModule" if compiled else "Classifier")


@spec(45, 55, 196)
def test_the_stance_of_the_compiler():
    assert compose_config(["training=optimization"]).hardware.compiler.stance == "default"
    with pytest.raises(ConfigError, match="performance") as error:  # torch has no such stance
        compose_config(["hardware.compiler.stance=performance"])
    assert "hardware.compiler.stance=default" in error.value.hint


@spec(197)
def test_the_compiler_searches_the_longest():
    compiler = compose_config(["training=optimization"]).hardware.compiler
    assert (compiler.mode, compiler.fullgraph, compiler.dynamic) == ("max-autotune", True, False)


def parts_of(transform):
    for part in getattr(transform, "transforms", ()):
        yield part
        yield from parts_of(part)


@spec(49, 50, 57, 61, 62, 63, 64, 65, 201)
def test_the_transforms_come_from_the_configuration():
    line = (
        'python -c "from data.augmentation import get_train_transforms; from omegaconf import OmegaConf; '
        "cfg=OmegaConf.load('configs/data/augmentation.yaml'); t=get_train_transforms(cfg); print('OK')\""
    )
    assert run_python(line) == "OK"
    from streetvision.data.augmentation import get_train_transforms, get_val_transforms

    changes = [
        "augmentation.trivial_augment_wide.enabled=true",
        "augmentation.aug_mix.enabled=true",
        "augmentation.erasing_probability=0.5",
    ]
    transform = get_train_transforms(compose_config(["training=peft", *changes]).augmentation)
    assert isinstance(transform, v2.Compose)
    kinds = {type(part) for part in parts_of(transform)}
    assert {v2.TrivialAugmentWide, v2.AugMix, v2.RandomErasing} <= kinds
    image = torch.randint(0, 255, (3, 96, 128), dtype=torch.uint8)
    assert transform(image).shape == get_val_transforms()(image).shape == (3, 224, 224)


@spec(59, 60)
def test_both_augmentations_can_be_set():
    content = yaml("data/augmentation.yaml")
    assert content.trivial_augment_wide.num_magnitude_bins == 31
    assert (content.aug_mix.severity, content.aug_mix.mixture_width, content.aug_mix.alpha) == (3, 3, 1.0)
    for key in ("trivial_augment_wide.num_magnitude_bins=15", "aug_mix.severity=5", "aug_mix.mixture_width=2"):
        both = ["augmentation.trivial_augment_wide.enabled=true", "augmentation.aug_mix.enabled=true"]
        compose_config(["training=peft", *both, f"augmentation.{key}"])


@spec(72, 73, 102)
def test_the_settings_of_the_adaptation():
    from streetvision.training.ssl.config import ExPLoRAConfig

    fields = ExPLoRAConfig.model_fields
    assert (fields["rank"].default, fields["alpha"].default) == (32, 64.0)
    assert "0.07 to 0.2" in (CONFIGS / "phase4a/explora.yaml").read_text()


@spec(74, 90, 104)
def test_simclr_contrasts_within_the_batch_only():
    from streetvision.training.ssl.losses import SimCLRLoss

    loss = SimCLRLoss(temperature=0.1)
    assert not list(loss.parameters())
    assert not list(loss.buffers())  # no memory bank
    views = torch.eye(8)
    assert loss(views, views) < loss(views, views.flip(0))


@spec(75, 79)
def test_the_projection_head_has_two_layers_with_norm_and_gelu():
    from streetvision.training.ssl.explora import projection_head

    head = projection_head(48, 32, 16)
    assert {nn.Linear, nn.LayerNorm, nn.GELU} <= {type(layer) for layer in head.modules()}
    assert sum(isinstance(layer, nn.Linear) for layer in head.modules()) == 2
    assert head(torch.randn(4, 48)).shape == (4, 16)


@spec(76)
def test_the_augmentation_makes_two_different_views():
    from streetvision.data.config import PairConfig
    from streetvision.data.two_views import TwoViews

    image = torch.randint(0, 255, (3, 96, 128), dtype=torch.uint8)
    first, second = TwoViews(PairConfig(), image_size=64)(image)
    assert first.shape == second.shape == (3, 64, 64)
    assert not torch.equal(first, second)


@spec(77, 80, 82, 83)
def test_the_adaptation_is_a_lightning_module():
    import lightning.pytorch as pl

    from streetvision.training.ssl.explora import ExPLoRAModule

    assert issubclass(ExPLoRAModule, pl.LightningModule)
    assert {"training_step", "configure_optimizers"} <= set(dir(ExPLoRAModule))


@spec(202)
@pytest.mark.parametrize("method", ["simclr", "byol", "swav", "byol_swav"])
def test_the_method_of_the_adaptation_can_be_selected(method):
    assert compose_config([f"phase4a.method={method}"]).phase4a.method == method


@spec(40)
def test_the_learning_rate_rises_and_then_follows_a_cosine():
    from streetvision.training.optim import cosine_with_warmup

    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule, rates = cosine_with_warmup(optimizer, total_steps=100, warmup_steps=10), []
    for _ in range(100):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates[:10] == sorted(rates[:10])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert (max(rates), rates[-1]) == (1.0, pytest.approx(0, abs=1e-2))


@spec(41, 53, 86)
def test_accumulation_multiplies_the_effective_batch():
    config = compose_config(["training=peft", "training.batch_size=16", "training.gradient_accumulation_steps=4"])
    assert config.training.effective_batch_size == 64
    config = compose_config(["phase4a.batch_size=32", "phase4a.gradient_accumulation_steps=4"])
    assert config.phase4a.effective_batch_size == 128


@spec(52)
def test_bf16_is_selected_where_the_device_has_it(monkeypatch):
    from streetvision.training import precision

    for has_it, expected in ((True, "bf16-mixed"), (False, "32-true")):
        monkeypatch.setattr(precision, "has_fast_bf16", lambda _, has_it=has_it: has_it)
        assert precision.lightning_precision("auto", torch.device("cpu")).precision == expected


@spec(93, 94)
def test_the_model_configuration_names_the_adapted_checkpoint():
    content = yaml("model/dinov3_vith16.yaml")
    assert {"init_from_explora", "explora_checkpoint_path"} <= content.keys()
    config = compose_config(["model=dinov3_vith16", "model.init_from_explora=true"])
    assert config.model.init_from_explora


@spec(138)
def test_the_model_configuration_names_the_fusion():
    assert yaml("model/dinov3_vith16.yaml").multiview.cvfm.mode == "trained"
    phases = "pipeline.phases=[phase1,phase4c_cvfm,phase5,phase6]"
    assert compose_config(["model=dinov3_vith16", phases]).phase4c.mode == "cvfm_trained"
    inference = compose_config(["model=dinov3_vith16", phases, "model.multiview.cvfm.mode=inference"])
    assert inference.phase4c.mode == "cvfm_inference"


def views(batch=3, count=4, width=8):
    generator = torch.Generator().manual_seed(0)
    mask = torch.ones(batch, count, dtype=torch.bool)
    content = torch.rand(batch, count, generator=generator) + 0.1
    return (
        torch.randn(batch, count, width, generator=generator),
        torch.randn(batch, count, 2, generator=generator),
        mask,
        content,
    )


@spec(106, 107, 108, 125, 135)
@pytest.mark.parametrize("mode", ["simple_mean", "weighted_uncertainty", "content_aware"])
def test_a_fusion_without_parameters(mode):
    from streetvision.models.config import FusionConfig
    from streetvision.models.fusion import InferenceCVFM

    _, logits, mask, content = views()
    fused = InferenceCVFM(FusionConfig(mode=mode))(logits, mask, content)
    assert fused.shape == (3, 2)
    if mode == "simple_mean":
        torch.testing.assert_close(fused, logits.mean(dim=1))


@spec(109)
def test_a_certain_view_counts_more():
    from streetvision.models.config import FusionConfig
    from streetvision.models.fusion import influence

    logits = torch.tensor([[[0.0, 0.1], [0.0, 6.0]]])
    weights = influence(
        logits, torch.ones(1, 2, dtype=torch.bool), torch.ones(1, 2), FusionConfig(mode="weighted_uncertainty")
    )
    assert weights[0, 1] > weights[0, 0]


@spec(110)
def test_a_view_with_more_content_counts_more():
    from streetvision.models.config import FusionConfig
    from streetvision.models.fusion import influence

    content = torch.tensor([[0.2, 0.9]])
    weights = influence(
        torch.randn(1, 2, 2), torch.ones(1, 2, dtype=torch.bool), content, FusionConfig(mode="content_aware")
    )
    assert weights[0, 1] > weights[0, 0]


@spec(111, 112, 113, 114, 115, 116, 134)
def test_the_trained_fusion_encodes_decodes_and_weights():
    from streetvision.models.config import TrainedFusionConfig, ViewsConfig
    from streetvision.models.fusion import TrainableCVFM

    config = ViewsConfig(rows=1, columns=3)
    features, logits, mask, content = views(count=config.count)
    fusion = TrainableCVFM(config, 8, 2, TrainedFusionConfig(latent_dim=5))
    output = fusion(features, logits, mask, content)
    assert (output.logits.shape, output.latent.shape, output.weights.shape) == ((3, 2), (3, 5), (3, config.count))
    fusion.reconstruction_loss(output.latent, features, mask).backward()
    assert all(parameter.requires_grad for parameter in fusion.parameters())
    assert any(parameter.grad is not None for parameter in fusion.parameters())


@spec(136, 203)
def test_views_can_attend_to_each_other():
    from streetvision.models.view_attention import attend_flex, attend_sdpa

    assert callable(attend_flex)
    assert callable(attend_sdpa)
    compose_config(["phase4c=cvfm", "phase4c.trained.attention_heads=4"])


@spec(137)
def test_the_configuration_explains_every_fusion_mode():
    text = (CONFIGS / "phase4c/cvfm.yaml").read_text()
    for mode in ("cvfm_trained", "cvfm_inference", "weighted_uncertainty", "content_aware"):
        assert mode in text


@spec(142)
def test_the_calibration_error_counts_a_probability_of_one():
    from streetvision.eval.metrics import ece

    assert ece(np.array([1, 1, 0, 0]), np.array([1.0, 1.0, 0.0, 0.0])) == pytest.approx(0)
    assert ece(np.array([0, 0]), np.array([1.0, 1.0])) == pytest.approx(1)


@spec(103, 120, 133, 192)
@pytest.mark.parametrize(
    ("phase", "splits"),
    [
        ("phase4a_explora", {Split.TRAIN, Split.VAL_SELECT}),
        ("evaluate", {Split.VAL_TEST}),
    ],
)
def test_a_phase_opens_its_splits_only(phase, splits):
    assert MAY_OPEN[phase] == splits
    assert Split.VAL_TEST not in MAY_OPEN["phase4c_cvfm"]


@spec(198, 199)
def test_dora_rslora_and_pissa_together():
    adapter = compose_config(["training=peft", "phase4b=dora"]).training.adapter
    assert (adapter.use_dora, adapter.use_rslora, adapter.init_lora_weights) == (True, True, "pissa")


@spec(29, 85)
def test_the_steps_use_the_functions_of_the_package():
    root = CONFIGS.parent / "pipeline" / "steps"
    assert "select_threshold_max_mcc" in (root / "sweep_thresholds.py").read_text()
    assert "ExPLoRAModule" in (root / "train_explora.py").read_text()
