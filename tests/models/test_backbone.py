"""Every backbone: tokens, spec, round trip through its description, and user errors."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn

from streetvision.contracts.errors import ArtifactError, ConfigError
from streetvision.models import backbone as backbone_module
from streetvision.models.backbone import BACKBONES, BackboneConfig, build_backbone, load_backbone
from streetvision.models.backbone_spec import token_count
from streetvision.models.module import fixed_size
from streetvision.models.network import Backbone, state_digest
from streetvision.models.transformers_backbone import FAMILIES

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
TINY = {
    "dinov3_vit": {**SMALL, "intermediate_size": 32, "num_register_tokens": 2, "patch_size": 8, "image_size": 32},
    "dinov3_convnext": {"hidden_sizes": [8, 8, 8, 16], "depths": [1, 1, 1, 1], "image_size": 64},
    "dinov2": {**SMALL, "mlp_ratio": 2, "patch_size": 8, "image_size": 32},
    "dinov2_with_registers": {**SMALL, "mlp_ratio": 2, "num_register_tokens": 3, "patch_size": 8, "image_size": 32},
    "vit": {**SMALL, "intermediate_size": 32, "patch_size": 8, "image_size": 32},
}
TIMM = ("test_vit", "test_vit3", "test_convnext", "test_efficientnet", "test_resnet")


def library_model(model_type: str) -> nn.Module:
    family = FAMILIES[model_type]
    config = getattr(transformers, family.config)(**TINY[model_type])
    torch.manual_seed(1)
    return getattr(transformers, family.model)(config).eval()


def folder_of(tmp_path: Path, model_type: str) -> Path:
    library_model(model_type).save_pretrained(tmp_path)
    return tmp_path


def images(backbone: Backbone, count: int = 2) -> torch.Tensor:
    return torch.randn(count, 3, *backbone.spec.image_size, generator=torch.Generator().manual_seed(0))


def check_contract(backbone: Backbone) -> None:
    spec = backbone.spec
    pixels = images(backbone)
    (tokens,) = backbone(pixels)
    patches = token_count(spec.image_size, spec.patch_size)
    assert tokens.shape == (2, spec.prefix_tokens + patches, spec.embed_dim)
    assert tokens.isfinite().all()
    assert torch.equal(tokens, backbone(pixels)[0])
    blocks = backbone(pixels, spec.layers)
    assert len(blocks) == spec.layers
    assert all(block.shape == tokens.shape for block in blocks)
    torch.testing.assert_close(blocks[-1], tokens)
    modules = dict(backbone.named_modules())
    assert all(isinstance(modules[name], nn.Linear) for name in spec.lora_targets)
    tokens.square().mean().backward()
    assert [n for n, p in backbone.named_parameters() if p.requires_grad and p.grad is None] == []

    description = json.loads(json.dumps(spec.architecture))
    rebuilt = build_backbone(description)
    assert rebuilt.spec == spec
    rebuilt.load_state_dict(backbone.state_dict(), strict=True)
    assert torch.equal(rebuilt(pixels)[0], tokens)
    assert state_digest(rebuilt) == state_digest(backbone)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_transformers_families_fulfil_the_contract(tmp_path: Path, model_type: str) -> None:
    folder = folder_of(tmp_path, model_type)
    backbone = load_backbone(BackboneConfig(source="transformers", name=str(folder)))
    check_contract(backbone)
    original = library_model(model_type)
    options = {"interpolate_pos_encoding": False} if model_type == "vit" else {}
    pixels = images(backbone)
    assert torch.equal(backbone(pixels)[0], original(pixels, **options).last_hidden_state)
    expected = {"dinov3_vit": 3, "dinov2_with_registers": 4}.get(model_type, 1)
    assert backbone.spec.prefix_tokens == expected
    assert backbone.spec.mean[0] == (0.5 if model_type == "vit" else 0.485)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_transformers_families_work_at_another_size(tmp_path: Path, model_type: str) -> None:
    folder = folder_of(tmp_path, model_type)
    backbone = load_backbone(BackboneConfig(source="transformers", name=str(folder)), fixed_size((96, 64)))
    check_contract(backbone)
    assert backbone.spec.image_size == (96, 64)


@pytest.mark.parametrize("name", TIMM)
def test_timm_fulfils_the_contract(name: str) -> None:
    check_contract(load_backbone(BackboneConfig(source="timm", name=name)))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["test_vit", "test_convnext", "swin_tiny_patch4_window7_224"])
def test_timm_works_at_another_size(name: str) -> None:
    backbone = load_backbone(BackboneConfig(source="timm", name=name), fixed_size((96, 64)))
    check_contract(backbone)
    assert backbone.spec.image_size == (96, 64)


@pytest.mark.slow
def test_tokens_of_an_nhwc_feature_map_are_in_row_order() -> None:
    backbone = load_backbone(BackboneConfig(source="timm", name="swin_tiny_patch4_window7_224"), fixed_size(64))
    pixels = images(backbone)
    feature_map = backbone.network.forward_features(pixels)  # (B, 2, 2, D)
    assert torch.equal(backbone(pixels)[0][:, 1], feature_map[:, 0, 1])


def test_tokens_of_an_nchw_feature_map_are_in_row_order() -> None:
    backbone = load_backbone(BackboneConfig(source="timm", name="test_convnext"), fixed_size(64))
    pixels = images(backbone)
    feature_map = backbone.network.forward_features(pixels)  # (B, D, H', W')
    assert torch.equal(backbone(pixels)[0][:, 1], feature_map[:, :, 0, 1])
    assert backbone.spec.prefix_tokens == 0


def test_registers_are_not_a_class_token() -> None:
    spec = load_backbone(BackboneConfig(source="timm", name="test_vit3")).spec
    assert (spec.prefix_tokens, spec.class_token) == (1, False)


def test_lora_targets_are_all_linears_of_a_dinov3_block(tmp_path: Path) -> None:
    backbone = load_backbone(BackboneConfig(source="transformers", name=str(folder_of(tmp_path, "dinov3_vit"))))
    names = [name for name in backbone.spec.lora_targets if ".layer.1." in name]
    ends = (
        "attention.k_proj",
        "attention.v_proj",
        "attention.q_proj",
        "attention.o_proj",
        "mlp.up_proj",
        "mlp.down_proj",
    )
    assert set(names) == {f"network.model.layer.1.{end}" for end in ends}


def test_linear_layers_whose_forward_does_not_run_are_not_lora_targets() -> None:
    targets = load_backbone(BackboneConfig(source="timm", name="test_vit3")).spec.lora_targets
    assert targets
    bypassing = build_backbone(
        {
            "source": "timm",
            "name": "eva02_tiny_patch14_224",
            "image_size": [28, 28],
            "mean": [0.5] * 3,
            "std": [0.5] * 3,
        }
    )
    assert not any(name.endswith("attn.qkv") for name in bypassing.spec.lora_targets)
    assert any(name.endswith("attn.proj") for name in bypassing.spec.lora_targets)


def test_random_is_deterministic_and_does_not_change_the_global_generator() -> None:
    config = BackboneConfig(source="random", width=16, depth=1, heads=2, registers=1, seed=3)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = load_backbone(config)
    assert torch.equal(torch.rand(3), expected)
    check_contract(first)
    assert not first.training
    assert state_digest(load_backbone(config)) == state_digest(first)
    assert state_digest(load_backbone(config.model_copy(update={"seed": 4}))) != state_digest(first)


def test_a_backbone_without_registers_fulfils_the_contract() -> None:
    check_contract(
        load_backbone(BackboneConfig(source="random", width=16, depth=1, heads=2, registers=0), fixed_size(32))
    )


@pytest.mark.slow
def test_digest_is_stable_across_processes_and_covers_names_types_shapes_and_bytes() -> None:
    code = (
        "import torch; from streetvision.models.network import state_digest;"
        "m = torch.nn.Linear(2, 3); torch.nn.init.ones_(m.weight); torch.nn.init.zeros_(m.bias); print(state_digest(m))"
    )
    module = nn.Linear(2, 3)
    nn.init.ones_(module.weight)
    nn.init.zeros_(module.bias)
    digest = state_digest(module)
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert process.stdout.strip() == digest
    expected = hashlib.sha256()
    for name, shape in (("bias", (3,)), ("weight", (3, 2))):
        expected.update(repr((name, "torch.float32", shape)).encode())
        expected.update(module.state_dict()[name].numpy().tobytes())
    assert expected.hexdigest() == digest
    assert state_digest(module.to(torch.bfloat16)) != digest


def test_normalization_comes_from_the_preprocessor_configuration(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "vit")
    values = {"image_processor_type": "ViTImageProcessor", "image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    (folder / "preprocessor_config.json").write_text(json.dumps(values))
    spec = load_backbone(BackboneConfig(source="transformers", name=str(folder))).spec
    assert (spec.mean, spec.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    (folder / "preprocessor_config.json").write_text(json.dumps({**values, "do_normalize": False}))
    spec = load_backbone(BackboneConfig(source="transformers", name=str(folder))).spec
    assert (spec.mean, spec.std) == ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def test_a_preprocessor_that_is_not_valid_is_named(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "vit")
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.1, 0.2]}))
    with pytest.raises(ArtifactError, match=r"is not valid: mean"):
        load_backbone(BackboneConfig(source="transformers", name=str(folder)))


def test_a_classifier_checkpoint_gives_its_backbone(tmp_path: Path) -> None:
    config = transformers.ViTConfig(**TINY["vit"])
    model = transformers.ViTForImageClassification(config).eval()
    model.save_pretrained(tmp_path)
    backbone = load_backbone(BackboneConfig(source="transformers", name=str(tmp_path)))
    pixels = images(backbone)
    assert torch.equal(backbone(pixels)[0], model.vit(pixels).last_hidden_state)


def test_transformers_weights_that_do_not_fit_are_named(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    weights = folder_of(tmp_path, "dinov3_vit") / "model.safetensors"
    state = load_file(weights)
    norm = state.pop("norm.weight")
    save_file({**state, "bogus.weight": norm}, weights, metadata={"format": "pt"})
    config = BackboneConfig(source="transformers", name=str(tmp_path))
    capfd.readouterr()
    with pytest.raises(ArtifactError, match=r"missing norm\.weight; unexpected bogus\.weight"):
        load_backbone(config)
    save_file({**state, "norm.weight": torch.zeros(3)}, weights, metadata={"format": "pt"})
    with pytest.raises(ArtifactError, match=r"norm\.weight \(3,\), expected \(16,\)"):
        load_backbone(config)
    assert capfd.readouterr() == ("", "")


def test_a_half_precision_checkpoint_is_loaded_in_float32(tmp_path: Path) -> None:
    library_model("dinov3_vit").to(torch.bfloat16).save_pretrained(tmp_path)
    backbone = load_backbone(BackboneConfig(source="transformers", name=str(tmp_path)))
    assert {p.dtype for p in backbone.parameters()} == {torch.float32}


def test_code_references_in_a_folder_are_ignored(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "dinov3_vit")
    values = json.loads((folder / "config.json").read_text())
    values |= {"auto_map": {"AutoModel": "evil.Model"}, "_attn_implementation": "someone/kernel"}
    (folder / "config.json").write_text(json.dumps(values))
    backbone = load_backbone(BackboneConfig(source="transformers", name=str(folder)))
    assert "auto_map" not in backbone.spec.architecture["config"]
    assert backbone.network.config._attn_implementation == "sdpa"


def test_other_model_types_are_rejected_with_the_list(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ConfigError, match="dinov2, dinov2_with_registers, dinov3_convnext, dinov3_vit, vit"):
        load_backbone(BackboneConfig(source="transformers", name=str(tmp_path)))


def test_a_folder_that_is_missing_or_incomplete_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="absent"):
        load_backbone(BackboneConfig(source="transformers", name=str(tmp_path / "absent")))
    with pytest.raises(ConfigError, match=r"needs config\.json and model\.safetensors"):
        load_backbone(BackboneConfig(source="transformers", name=str(tmp_path)))
    (folder_of(tmp_path, "vit") / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match="no complete backbone"):
        load_backbone(BackboneConfig(source="transformers", name=str(tmp_path)))


def test_a_hub_error_suggests_a_local_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("no connection")

    monkeypatch.setattr(transformers.PreTrainedConfig, "get_config_dict", fail)
    with pytest.raises(ConfigError, match=r"no connection\n.*give the folder"):
        load_backbone(BackboneConfig(source="transformers", name="facebook/dinov3-vits16-pretrain-lvd1689m"))


@pytest.mark.slow
def test_timm_weight_files_contain_the_whole_classifier_or_none(tmp_path: Path) -> None:
    model = timm.create_model("test_vit", num_classes=7).eval()
    state = model.state_dict()
    body = {key: value for key, value in state.items() if not key.startswith("head.")}
    file = tmp_path / "w.safetensors"
    config = BackboneConfig(source="timm", name="test_vit", weights=file)
    for fitting in (state, body):
        save_file(fitting, file)
        backbone = load_backbone(config)
        pixels = images(backbone)
        assert torch.equal(backbone(pixels)[0], model.forward_features(pixels))
    save_file({key: value for key, value in state.items() if key != "head.bias"}, file)
    with pytest.raises(ArtifactError, match=r"missing head\.bias"):
        load_backbone(config)
    save_file({("odd" if key == "norm.bias" else key): value for key, value in body.items()}, file)
    with pytest.raises(ArtifactError, match=r"missing norm\.bias; unexpected odd"):
        load_backbone(config)


def test_sizes_that_the_patch_does_not_divide_are_rejected(tmp_path: Path) -> None:
    folder = str(folder_of(tmp_path, "dinov2"))
    with pytest.raises(ConfigError, match="nearest valid values: 32 and 40"):
        load_backbone(BackboneConfig(source="transformers", name=folder), fixed_size(37))
    with pytest.raises(ConfigError, match="nearest valid values: 96 and 112"):
        load_backbone(BackboneConfig(source="timm", name="test_vit"), fixed_size(100))
    backbone = load_backbone(BackboneConfig(source="transformers", name=folder))
    with pytest.raises(ConfigError, match="nearest valid values: 32 and 40"):
        backbone(torch.zeros(1, 3, 32, 39))


def test_settings_that_have_no_effect_for_a_source_are_rejected() -> None:
    with pytest.raises(ConfigError, match=r"backbone\.depth`, `model\.backbone\.seed"):
        BackboneConfig(source="transformers", name="x", depth=2, seed=1)
    with pytest.raises(ConfigError, match=r"did you mean 'random'.*\n.*embedded, random, timm, transformers"):
        BackboneConfig(source="randon")
    with pytest.raises(ConfigError, match="name is missing"):
        BackboneConfig(source="timm")
    with pytest.raises(ConfigError, match="cannot be combined"):
        BackboneConfig(source="timm", name="test_vit", pretrained=True, weights=Path("w"))
    with pytest.raises(ConfigError, match=r"backbone\.seed` has no effect"):
        BackboneConfig(source="timm", name="test_vit", pretrained=True, seed=1)
    with pytest.raises(ConfigError, match="a width that 8 divides"):
        load_backbone(BackboneConfig(source="random", width=12, heads=2))
    assert all(source.reads <= set(BackboneConfig.model_fields) for source in BACKBONES.values())


def test_embedded_backbones_load_like_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backbone_module.resources, "files", lambda _: tmp_path)
    with pytest.raises(ConfigError, match="contains none"):
        load_backbone(BackboneConfig(source="embedded", name="street"))
    folder_of(tmp_path / "assets" / "street", "dinov3_vit")
    check_contract(load_backbone(BackboneConfig(source="embedded", name="street")))
    with pytest.raises(ConfigError, match=r"did you mean 'street'.*\n.*choose one of: street"):
        load_backbone(BackboneConfig(source="embedded", name="stret"))


@pytest.mark.slow
def test_real_deit_weights_load_and_separate_images() -> None:
    root = os.environ.get("STREETVISION_REAL_DATA")
    file = Path(root or "absent") / "deit_tiny_patch16_224" / "model.safetensors"
    if not file.is_file():
        pytest.skip("set STREETVISION_REAL_DATA to the folder that holds deit_tiny_patch16_224/model.safetensors")
    backbone = load_backbone(BackboneConfig(source="timm", name="deit_tiny_patch16_224", weights=file))
    check_contract(backbone)
    reference = timm.create_model("deit_tiny_patch16_224", pretrained=True, pretrained_cfg_overlay={"file": str(file)})
    pixels = images(backbone, 1)
    assert torch.equal(backbone(pixels)[0], reference.eval().forward_features(pixels))
    resized = load_backbone(BackboneConfig(source="timm", name="deit_tiny_patch16_224", weights=file), fixed_size(160))
    check_contract(resized)


def test_a_dinov3_in_train_mode_depends_on_its_images_only() -> None:
    """By default DINOv3 moves positions at random once per call, which differs between parts of a batch."""
    backbone = load_backbone(BackboneConfig(source="random", width=16, depth=1, heads=2), fixed_size(32))
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        in_eval, in_train = backbone(images)[0], backbone.train()(images)[0]
    assert torch.equal(in_eval, in_train)
