from multiprocessing import active_children
from pathlib import Path

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from streetvision.contracts.errors import ConfigError, StreetVisionError
from streetvision.contracts.progress import Silent
from streetvision.contracts.split_contracts import Row
from streetvision.data.augmentation import get_val_transforms
from streetvision.data.config import DEFAULT_LIMITS, PairConfig
from streetvision.data.datamodule import EpochBatchSampler, ImageDataset, ImageLoader
from streetvision.data.two_views import TwoViews
from streetvision.io.atomic import sha256_file
from streetvision.models.backbone import BackboneConfig
from streetvision.models.config import LinearHeadConfig, ModelConfig
from streetvision.models.module import Classifier, load_classifier
from streetvision.training.ssl import collapse_monitor
from streetvision.training.ssl.anchor import Anchor
from streetvision.training.ssl.collapse_monitor import CollapseMonitor
from streetvision.training.ssl.config import AnyExPLoRAConfig
from streetvision.training.ssl.explora import METHODS, ExPLoRAModule, Student, prepare_backbone
from streetvision.training.ssl.head_training import MAX_PASSES, HeadTraining, is_flat, train_heads
from streetvision.training.trainer import TrainerOptions, seed_all, train_module

BACKBONE = BackboneConfig(source="random", width=16, depth=3, heads=2)
SMALL = {
    "rank": 4,
    "projection_hidden": 16,
    "projection_dim": 8,
    "mixed_precision": {"enabled": False},
    "num_epochs": 1,
    "batch_size": 16,
}


def config(**changes):
    views = {"views": {"positives": "same_group"}} if changes.get("method") == "group" else {}
    return TypeAdapter(AnyExPLoRAConfig).validate_python({"method": "simclr"} | SMALL | views | changes)


def student(settings, seed=0):
    seed_all(seed)
    classifier = load_classifier(ModelConfig(backbone=BACKBONE, image_size=32, head=LinearHeadConfig()))
    prepare_backbone(classifier, settings)
    return Student(classifier, 16, settings, n_images=48)


def original_classifier():
    seed_all(0)
    return load_classifier(ModelConfig(backbone=BACKBONE, image_size=32, head=LinearHeadConfig()))


def make_anchor():
    """The anchor of random images."""
    images = torch.randint(0, 256, (12, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    classifier = original_classifier()
    reader = Classifier(classifier.backbone, pooling="cls_mean", head=LinearHeadConfig(), layers=2)
    with torch.no_grad():
        return Anchor(images, reader.embed(images), reader.pooling, reader.layers, seed=0)


@pytest.fixture(scope="module")
def rows(scenes):
    images = sorted((scenes / "images").rglob("*.jpg"))[:48]
    return tuple(Row(str(path), n % 2, sha256_file(path), 96, 72, 0.5, group=f"g{n}") for n, path in enumerate(images))


def loader(rows, transform, batch_size=16, *, shuffle=False, parts=1, workers=0):
    dataset = ImageDataset(rows, root=Path("/"), transform=transform, limits=DEFAULT_LIMITS)
    order = EpochBatchSampler(len(rows), batch_size=batch_size, shuffle=shuffle, micro_batches=parts)
    return ImageLoader(dataset, order, workers=workers)


def trained(rows, settings, *, workers=0, heads=True, **options):
    module = ExPLoRAModule(student(settings), settings, anchor=make_anchor() if settings.anchor_weight else None)
    pairs, plain = TwoViews(settings.views, image_size=32), get_val_transforms(image_size=32)
    monitor = CollapseMonitor(
        settings,
        Silent(),
        select=loader(rows[32:], pairs),
        probe=loader(rows[:32], plain),
        groups=[row.group for row in rows[:32]],
    )
    shuffled = {"shuffle": True, "parts": settings.gradient_accumulation_steps, "workers": workers}
    seed_all(1)
    with loader(rows[:32], pairs, settings.effective_batch_size, **shuffled) as batches:
        monitor.resumed_step = train_module(
            module,
            batches,
            None,
            epoch_logger=monitor,
            options=TrainerOptions(Silent(), **options),
            before=[HeadTraining(settings)] if heads else [],
        )
    return module, monitor


@pytest.fixture(scope="module")
def trained_once(rows):
    """Train with some settings; a second call with the same settings returns the same network."""
    networks = {}

    def train(**changes):
        key = str(sorted(changes.items()))
        if key not in networks:
            networks[key] = trained(rows, config(**changes))[0].model
        return networks[key]

    return train


def trained_parameters(module):
    return {name: p.detach().clone() for name, p in module.model.named_parameters() if p.requires_grad}


def test_the_last_blocks_are_trained_directly_and_all_others_by_adapters_and_norms():
    classifier = student(config(unfreeze_blocks=1)).classifier
    trainable = {name for name, p in classifier.backbone.named_parameters() if p.requires_grad}
    blocks = {number: {n for n in trainable if f".{number}." in n} for number in (0, 1, 2)}
    for early in (0, 1):
        assert any("lora_A" in name for name in blocks[early])
        assert all("lora_" in name or "norm" in name for name in blocks[early])
        assert any("norm" in name for name in blocks[early])
    assert not any("lora_" in name for name in blocks[2])
    assert blocks[2] == {n for n, _ in classifier.backbone.named_parameters() if ".2." in n}
    assert not any(p.requires_grad for p in classifier.head.parameters())


@pytest.mark.parametrize("blocks", [0, 3])
def test_no_block_can_be_unfrozen_but_not_all_blocks(blocks):
    if blocks == 3:
        with pytest.raises(ConfigError, match="no linear layer"):
            student(config(unfreeze_blocks=3))
    else:
        assert all("lora_" in n or "norm" in n for n, p in student(config(unfreeze_blocks=0)).named_parameters()
                   if p.requires_grad and "backbone" in n)  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
def test_every_method_changes_exactly_the_trainable_parameters(rows, method):
    settings = config(method=method)
    before = {n: p.detach().clone() for n, p in student(settings).named_parameters()}
    module, monitor = trained(rows, settings)
    moved = {n for n, p in module.model.named_parameters() if not torch.equal(p.detach(), before[n])}
    assert moved == {n for n, p in module.model.named_parameters() if p.requires_grad}
    assert [row["epoch"] for row in monitor.history] == [0, 1]
    finite = ("select_loss", "alignment", "uniformity", "effective_rank", "knn_mcc")
    assert all(torch.isfinite(torch.tensor(float(row[name]))) for row in monitor.history for name in finite)


def test_workers_end_with_the_training_although_the_trainer_keeps_its_loader(rows):
    module, _ = trained(rows, config(), workers=1)
    assert module.trainer.train_dataloader is not None
    assert active_children() == []


def test_the_cache_gives_the_same_gradient(rows, monkeypatch):
    """In the first step; after it, Adam amplifies tiny differences of the gradients."""

    def gradient(settings):
        steps = []

        def record(module, _):
            steps.append({n: p.grad.clone() for n, p in module.model.named_parameters() if p.grad is not None})

        monkeypatch.setattr(ExPLoRAModule, "on_before_optimizer_step", record)
        trained(rows, settings, heads=False)
        return steps[0]

    full, cached = gradient(config()), gradient(config(grad_cache_chunk=5))
    assert full.keys() == cached.keys()
    assert any(float(value.abs().max()) > 1e-3 for value in full.values())
    for name, value in full.items():
        torch.testing.assert_close(cached[name], value, rtol=1e-5, atol=1e-6, msg=name)


def test_the_cache_embeds_at_most_one_chunk_of_views(rows, monkeypatch):
    sizes, embed = [], ExPLoRAModule._embed_chunk
    monkeypatch.setattr(
        ExPLoRAModule, "_embed_chunk", lambda module, images: sizes.append(len(images)) or embed(module, images)
    )
    trained(rows, config(grad_cache_chunk=5))
    assert sum(sizes) == 2 * 2 * 32  # all views of the epoch, once without a graph and once with it
    assert max(sizes) == 5


def test_accumulation_changes_the_step_of_a_contrastive_loss_but_not_of_byol(rows):
    for method, same in (("simclr", False), ("byol", True)):
        settings = config(method=method, anchor_weight=0)
        halves = {"batch_size": settings.batch_size // 2, "gradient_accumulation_steps": 2}
        whole, parts = (trained(rows, s, heads=False)[0] for s in (settings, settings.model_copy(update=halves)))
        differences = [
            (trained_parameters(parts)[name] - value).abs().max() for name, value in trained_parameters(whole).items()
        ]
        assert bool(max(differences) < 1e-5) is same, method


@pytest.mark.parametrize(
    ("changes", "baseline"),
    [
        ({"method": "byol"}, {}),
        ({"num_epochs": 2}, {}),
        ({"batch_size": 8}, {}),
        ({"learning_rate": 2e-3}, {}),
        ({"weight_decay": 0.5}, {}),
        ({"warmup_fraction": 0.9}, {"num_epochs": 2}),
        ({"gradient_clip_norm": 1e-3}, {}),
        ({"mixed_precision": {"enabled": True}}, {}),
        ({"rank": 2}, {}),
        ({"alpha": 8.0}, {}),
        ({"dropout": 0.5}, {}),
        ({"use_dora": True}, {}),
        ({"unfreeze_blocks": 2}, {}),
        ({"projection_hidden": 8}, {}),
        ({"projection_dim": 4}, {}),
        ({"temperature": 0.2}, {}),
        ({"momentum": 0.5}, {"method": "byol"}),
        ({"temperature": 0.2}, {"method": "group"}),
        ({"label_smoothing": 0.1}, {"method": "diet"}),
        ({"layer_decay": 0.5}, {}),
        ({"head_learning_rate": 1e-2}, {}),
        ({"anchor_weight": 100.0}, {}),
        ({"anchor_weight": 0.0}, {}),
        ({"prototypes": 8}, {"method": "swav"}),
        ({"epsilon": 0.1}, {"method": "swav"}),
    ],
    ids=lambda changes: "-".join(changes),
)
def test_every_setting_changes_the_trained_weights(trained_once, monkeypatch, changes, baseline):
    monkeypatch.setattr(collapse_monitor, "MAX_UNIFORMITY", 0.0)  # a tiny network may collapse in a few steps
    monkeypatch.setattr(collapse_monitor, "MIN_EFFECTIVE_RANK", 0.0)
    plain, changed = (trained_once(**settings) for settings in (baseline, baseline | changes))
    backbones = [module.classifier.backbone.state_dict() for module in (plain, changed)]
    assert any(not torch.equal(value, backbones[1].get(name, value[..., :0])) for name, value in backbones[0].items())


@pytest.mark.parametrize(("epochs_logged", "step"), [(1, 1), (2, 3)])
def test_an_interrupted_run_ends_in_equal_weights(rows, tmp_path, epochs_logged, step):
    """Stopped at the end of an epoch of two steps, it resumes from the checkpoint of the first one."""
    settings = config(num_epochs=2, method="byol", checkpoint_every_n_steps=1)
    expected_module, expected = trained(rows, settings)

    class StopError(Exception):
        pass

    measure = CollapseMonitor.measure

    def interrupted(self, module):
        if len(self.history) == epochs_logged:
            raise StopError
        return measure(self, module)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CollapseMonitor, "measure", interrupted)
        with pytest.raises(StopError):
            trained(rows, settings, checkpoint=tmp_path / "c.ckpt", resume_key="k")
    module, monitor = trained(rows, settings, checkpoint=tmp_path / "c.ckpt", resume_key="k")
    assert monitor.resumed_step == step
    assert (monitor.images, expected.images) == (64 - 16 * step, 64)
    for name, value in trained_parameters(expected_module).items():
        assert torch.equal(trained_parameters(module)[name], value), name
    for row, expected_row in zip(monitor.history[1:], expected.history[1:], strict=True):  # epoch 0 has a loss of nan
        assert {**row, "seconds": 0} == {**expected_row, "seconds": 0}


def test_the_learning_rate_falls_from_block_to_block(rows):
    module, _ = trained(rows, config(layer_decay=0.5, head_learning_rate=1e-2, learning_rate=1e-3))
    rates = {
        id(parameter): group["initial_lr"]
        for group in module.trainer.optimizers[0].param_groups
        for parameter in group["params"]
    }
    of = {name: rates[id(p)] for name, p in module.model.named_parameters() if p.requires_grad}
    for block, rate in ((0, 1.25e-4), (1, 2.5e-4), (2, 5e-4)):
        assert {value for name, value in of.items() if f".{block}." in name and "backbone" in name} == {rate}
    assert {value for name, value in of.items() if "backbone" not in name} == {1e-2}


def test_the_anchor_keeps_the_features_of_unchanged_images(rows):
    distances = []
    for weight in (0.001, 1000.0):
        module, monitor = trained(rows, config(learning_rate=1e-3, num_epochs=3, anchor_weight=weight))
        assert monitor.history[0]["anchor_distance"] == 0
        distances.append(monitor.history[-1]["anchor_distance"])
        assert make_anchor().distance(module.model.classifier, n=48, step=(0, 0), rank_and_world_size=(0, 1)) > 0
    assert distances[1] < 0.5 * distances[0]


def test_two_processes_draw_the_anchor_of_one():
    classifier, anchor = student(config(unfreeze_blocks=2), seed=1).classifier, make_anchor()
    with torch.no_grad():
        for parameter in classifier.backbone.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    whole = anchor.distance(classifier, n=32, step=(1, 2), rank_and_world_size=(0, 1))
    parts = [anchor.distance(classifier, n=16, step=(1, 2), rank_and_world_size=(rank, 2)) for rank in (0, 1)]
    assert float(whole) == pytest.approx(float(sum(parts)) / 2, rel=1e-5)
    assert float(whole) != float(anchor.distance(classifier, n=32, step=(1, 3), rank_and_world_size=(0, 1)))
    assert anchor.distance(original_classifier(), n=32, step=(1, 2), rank_and_world_size=(0, 1)) < 1e-6


def test_the_heads_are_trained_before_the_first_row_and_the_backbone_is_not(rows, monkeypatch):
    settings = config(method="byol")
    start = {name: value.clone() for name, value in student(settings).state_dict().items()}
    seen = {}

    def first(module):
        seen.update({name: value.clone() for name, value in module.student[0].state_dict().items()})
        seen["ema"] = {name: value.clone() for name, value in module.ema.tensors.items()}
        raise KeyboardInterrupt

    monkeypatch.setattr(CollapseMonitor, "measure", lambda _, module: first(module))
    with pytest.raises(KeyboardInterrupt):
        trained(rows, settings)
    target = seen.pop("ema")
    changed = {name for name, value in start.items() if not torch.equal(seen[name], value)}
    assert changed == {name for name in start if not name.startswith("classifier.")}
    assert all(torch.equal(value, seen[name]) for name, value in target.items())


@pytest.mark.parametrize("method", METHODS)
def test_the_heads_are_trained_until_the_loss_is_flat(method):
    settings = config(method=method, head_learning_rate=1e-2)
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(16, 16, generator=generator)
    batch = torch.cat([first, first + 0.1 * torch.randn(16, 16, generator=generator)]), torch.arange(16)
    losses = train_heads(student(settings), [batch], settings)
    assert losses[-1] < losses[0]
    assert len(losses) == MAX_PASSES or is_flat(losses)
    assert not any(is_flat(losses[:number]) for number in range(len(losses)))


def test_heads_whose_loss_is_not_finite_are_an_error():
    settings = config()
    batch = torch.full((32, 16), torch.inf), torch.arange(16)
    with pytest.raises(StreetVisionError, match="loss of the heads"):
        train_heads(student(settings), [batch], settings)


def test_a_loss_is_flat_when_it_hardly_falls_over_a_window():
    assert not is_flat([2.0, 1.9, 1.8])
    assert not is_flat([2.0 - 0.1 * step for step in range(10)])
    assert is_flat([2.0 - 0.001 * step for step in range(10)])
    assert is_flat([1.0 + 0.1 * step for step in range(10)])
    assert is_flat([float("nan")] * 10)


def test_a_collapsed_run_is_an_error(rows, monkeypatch):
    monkeypatch.setattr(collapse_monitor, "uniformity", lambda _: -0.001)
    with pytest.raises(StreetVisionError, match="collapsed in epoch 1"):
        trained(rows, config())


def test_two_images_are_no_collapse_to_a_line(rows, monkeypatch):
    monkeypatch.setattr(collapse_monitor, "MAX_UNIFORMITY", 0.0)
    _, monitor = trained(rows[:34], config())
    assert monitor.history[-1]["effective_rank"] == pytest.approx(1)


@pytest.mark.parametrize(
    "changes", [{"momentum": 0.01, "learning_rate": 0.02}, {"momentum": 0.5, "learning_rate": 5e-3}]
)
def test_a_training_that_collapses_is_stopped(rows, changes):
    """To a point (uniformity -0.001 from epoch 3 on) and to a line (effective rank 1.3 from epoch 6 on)."""
    with pytest.raises(StreetVisionError, match="collapsed in epoch"):
        plain = {"layer_decay": 1.0, "warmup_fraction": 0.1, "head_learning_rate": changes["learning_rate"]}
        trained(rows, config(method="byol", num_epochs=12, anchor_weight=0, **plain, **changes), heads=False)


def test_a_loss_that_is_not_finite_names_the_settings_of_phase_4a(rows, monkeypatch):
    def step(module, _, batch_idx):
        module.add_train_loss(torch.tensor(float("nan")), 1, batch_idx)

    monkeypatch.setattr(ExPLoRAModule, "training_step", step)
    with pytest.raises(StreetVisionError, match="loss is nan") as caught:
        trained(rows, config(), heads=False)
    assert "phase4a.learning_rate" in caught.value.hint


def test_the_monitor_does_not_change_the_training(rows):
    settings = config()
    module = ExPLoRAModule(student(settings), settings)
    module.train()
    before, state = trained_parameters(module), torch.get_rng_state()
    monitor = CollapseMonitor(
        settings,
        Silent(),
        select=loader(rows[32:], TwoViews(settings.views, image_size=32)),
        probe=loader(rows[:32], get_val_transforms(image_size=32)),
        groups=[row.group for row in rows[:32]],
    )
    assert monitor.measure(module) == monitor.measure(module)  # the same views each time
    assert torch.equal(state, torch.get_rng_state())
    assert module.model.projection.training
    assert all(torch.equal(value, trained_parameters(module)[name]) for name, value in before.items())


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"method": "byol", "temperature": 0.2}, "temperature"),
        ({"momentum": 0.5}, "momentum"),
        ({"prototypes": 8}, "prototypes"),
        ({"method": "swav", "grad_cache_chunk": 8}, "grad_cache_chunk"),
        ({"method": "diet", "temperature": 0.2}, "temperature"),
        ({"label_smoothing": 0.2}, "label_smoothing"),
    ],
)
def test_a_setting_of_another_method_is_rejected(changes, name):
    with pytest.raises(ValidationError, match=name):
        config(**changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"crop_scale": (0.9, 1.0)},
        {"flip_probability": 0.0},
        {"color_jitter": 0.1},
        {"grayscale_p": 1.0},
        {"blur": False},
    ],
)
def test_views_differ_and_every_setting_changes_them(changes):
    image = (torch.arange(3 * 60 * 80).reshape(3, 60, 80) * 37 % 251).to(torch.uint8)

    def draw(settings):
        torch.manual_seed(3)
        return torch.stack([TwoViews(settings, image_size=32)(image) for _ in range(8)])

    views = draw(PairConfig())
    assert views.shape == (8, 2, 3, 32, 32)
    assert views.dtype == torch.uint8
    assert not torch.equal(views[:, 0], views[:, 1])
    assert not torch.equal(draw(PairConfig(**changes)), views)
