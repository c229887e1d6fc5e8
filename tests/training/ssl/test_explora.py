from multiprocessing import active_children

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
from streetvision.models.backbone import BackboneConfig
from streetvision.models.config import LinearHeadConfig, ModelConfig
from streetvision.models.module import load_classifier
from streetvision.training.ssl import collapse_monitor as watching
from streetvision.training.ssl.collapse_monitor import CollapseMonitor
from streetvision.training.ssl.config import AnyExPLoRAConfig
from streetvision.training.ssl.explora import METHODS, ExPLoRAModule, Student, prepare_backbone
from streetvision.training.trainer import TrainerOptions, seed_all, train_module

BACKBONE = BackboneConfig(source="random", width=16, depth=3, heads=2, image_size=32)
SMALL = {
    "rank": 4,
    "projection_hidden": 16,
    "projection_dim": 8,
    "mixed_precision": {"enabled": False},
    "num_epochs": 1,
    "batch_size": 16,
}


def config(**changes):
    return TypeAdapter(AnyExPLoRAConfig).validate_python({"method": "simclr"} | SMALL | changes)


def student(settings, seed=0):
    seed_all(seed)
    classifier = load_classifier(ModelConfig(backbone=BACKBONE, head=LinearHeadConfig()))
    prepare_backbone(classifier, settings)
    return Student(classifier, 16, settings)


@pytest.fixture(scope="module")
def rows(scenes):
    images = sorted((scenes / "images").rglob("*.jpg"))[:48]
    return tuple(Row(str(path), n % 2, f"{n:064d}", 96, 72, 0.5, group=f"g{n}") for n, path in enumerate(images))


def loader(rows, transform, batch_size=16, *, shuffle=False, parts=1, workers=0):
    dataset = ImageDataset(rows, root=rows_root(), transform=transform, limits=DEFAULT_LIMITS)
    order = EpochBatchSampler(len(rows), batch_size=batch_size, shuffle=shuffle, parts=parts)
    return ImageLoader(dataset, order, workers=workers)


def rows_root():
    from pathlib import Path

    return Path("/")


def trained(rows, settings, *, workers=0, **options):
    module = ExPLoRAModule(student(settings), settings)
    pairs, plain = TwoViews(settings.views, image_size=32), get_val_transforms(image_size=32)
    watch = CollapseMonitor(
        settings,
        Silent(),
        select=loader(rows[32:], pairs),
        probe=loader(rows[:32], plain),
        groups=[row.group for row in rows[:32]],
    )
    shuffled = {"shuffle": True, "parts": settings.gradient_accumulation_steps, "workers": workers}
    seed_all(1)
    with loader(rows[:32], pairs, settings.batch_size, **shuffled) as batches:
        watch.resumed_step = train_module(
            module, batches, None, epoch_logger=watch, options=TrainerOptions(Silent(), **options)
        )
    return module, watch


def learnt(module):
    return {name: p.detach().clone() for name, p in module.model.named_parameters() if p.requires_grad}


def test_adapters_everywhere_but_in_the_last_blocks_which_learn_whole_and_norms_everywhere():
    classifier = student(config(unfreeze_blocks=1)).classifier
    learning = {name for name, p in classifier.backbone.named_parameters() if p.requires_grad}
    blocks = {number: {n for n in learning if f".{number}." in n} for number in (0, 1, 2)}
    for early in (0, 1):
        assert any("lora_A" in name for name in blocks[early])
        assert all("lora_" in name or "norm" in name for name in blocks[early])
        assert any("norm" in name for name in blocks[early])
    assert not any("lora_" in name for name in blocks[2])
    whole = {n for n, _ in classifier.backbone.named_parameters() if ".2." in n}
    assert blocks[2] == whole
    assert not any(p.requires_grad for p in classifier.head.parameters())


@pytest.mark.parametrize("blocks", [0, 3])
def test_none_or_all_blocks_can_be_opened(blocks):
    if blocks == 3:
        with pytest.raises(ConfigError, match="no linear layer"):
            student(config(unfreeze_blocks=3))
    else:
        assert all("lora_" in n or "norm" in n for n, p in student(config(unfreeze_blocks=0)).named_parameters()
                   if p.requires_grad and "backbone" in n)  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_what_is_open_and_nothing_else(rows, method):
    settings = config(method=method)
    before = {n: p.detach().clone() for n, p in student(settings).named_parameters()}
    module, watch = trained(rows, settings)
    moved = {n for n, p in module.model.named_parameters() if not torch.equal(p.detach(), before[n])}
    assert moved == {n for n, p in module.model.named_parameters() if p.requires_grad}
    assert [row["epoch"] for row in watch.history] == [0, 1]
    finite = ("select_loss", "alignment", "uniformity", "effective_rank", "knn_mcc")
    assert all(torch.isfinite(torch.tensor(float(row[name]))) for row in watch.history for name in finite)


def test_no_worker_outlives_the_training_though_the_trainer_holds_its_loader(rows):
    module, _ = trained(rows, config(), workers=1)
    assert module.trainer.train_dataloader is not None
    assert active_children() == []


def test_the_cache_gives_the_same_gradient(rows, monkeypatch):
    """Of the first step: behind it Adam would make much of the signs of tiny differences."""

    def gradient(settings):
        seen = []

        def keep(module, _):
            seen.append({n: p.grad.clone() for n, p in module.model.named_parameters() if p.grad is not None})

        monkeypatch.setattr(ExPLoRAModule, "on_before_optimizer_step", keep)
        trained(rows, settings)
        return seen[0]

    whole, parts = gradient(config()), gradient(config(grad_cache_chunk=5))
    assert whole.keys() == parts.keys()
    assert any(float(value.abs().max()) > 1e-3 for value in whole.values())
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, rtol=1e-5, atol=1e-6, msg=name)


def test_no_more_views_than_asked_are_in_memory_at_once(rows, monkeypatch):
    seen, embed = [], ExPLoRAModule._embed_chunk
    monkeypatch.setattr(
        ExPLoRAModule, "_embed_chunk", lambda module, images: seen.append(len(images)) or embed(module, images)
    )
    trained(rows, config(grad_cache_chunk=5))
    assert sum(seen) == 2 * 2 * 32  # views of an epoch, each without a graph and then in one
    assert max(seen) == 5


def test_accumulation_is_another_step_for_a_contrast_and_the_same_for_byol(rows):
    for method, same in (("simclr", False), ("byol", True)):
        one, two = (trained(rows, config(method=method, gradient_accumulation_steps=parts))[0] for parts in (1, 2))
        gaps = [(learnt(two)[name] - value).abs().max() for name, value in learnt(one).items()]
        assert bool(max(gaps) < 1e-5) is same, method


@pytest.mark.parametrize(
    ("changes", "beside"),
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
        ({"prototypes": 8}, {"method": "swav"}),
        ({"epsilon": 0.1}, {"method": "swav"}),
    ],
    ids=lambda changes: "-".join(changes),
)
def test_every_setting_changes_what_is_learnt(rows, monkeypatch, changes, beside):
    monkeypatch.setattr(watching, "MAX_UNIFORMITY", 0.0)  # a few steps of a tiny network may well collapse
    monkeypatch.setattr(watching, "MIN_EFFECTIVE_RANK", 0.0)
    plain, changed = (trained(rows, config(**settings))[0].model for settings in (beside, beside | changes))
    backbones = [module.classifier.backbone.state_dict() for module in (plain, changed)]
    assert any(not torch.equal(value, backbones[1].get(name, value[..., :0])) for name, value in backbones[0].items())


@pytest.mark.parametrize(("looks", "step"), [(1, 1), (2, 3)])
def test_an_interrupted_run_ends_in_equal_weights(rows, tmp_path, looks, step):
    """Stopped at the end of an epoch of two steps: the checkpoint of its first one counts."""
    settings = config(num_epochs=2, method="byol", checkpoint_every_n_steps=1)
    undisturbed, whole = trained(rows, settings)

    class StopError(Exception):
        pass

    looked = CollapseMonitor.measure

    def interrupted(self, module):
        if len(self.history) == looks:
            raise StopError
        return looked(self, module)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CollapseMonitor, "measure", interrupted)
        with pytest.raises(StopError):
            trained(rows, settings, checkpoint=tmp_path / "c.ckpt", resume_key="k")
    module, watch = trained(rows, settings, checkpoint=tmp_path / "c.ckpt", resume_key="k")
    assert watch.resumed_step == step
    for name, value in learnt(undisturbed).items():
        assert torch.equal(learnt(module)[name], value), name
    drop = lambda history: [{k: v for k, v in row.items() if k != "seconds"} for row in history[1:]]  # noqa: E731
    assert drop(watch.history) == drop(whole.history)


def test_a_collapsed_run_stops_and_says_so(rows, monkeypatch):
    monkeypatch.setattr(watching, "uniformity", lambda _: -0.001)
    with pytest.raises(StreetVisionError, match="collapsed in epoch 1"):
        trained(rows, config())


@pytest.mark.parametrize(
    "changes", [{"momentum": 0.01, "learning_rate": 0.02}, {"momentum": 0.5, "learning_rate": 5e-3}]
)
def test_a_run_that_really_collapses_is_stopped(rows, changes):
    """To a point (uniformity -0.001 from epoch 3 on) and to a line (effective rank 1.3 from epoch 6 on)."""
    with pytest.raises(StreetVisionError, match="collapsed in epoch"):
        trained(rows, config(method="byol", num_epochs=12, **changes))


def test_watching_changes_nothing(rows):
    settings = config()
    module = ExPLoRAModule(student(settings), settings)
    module.train()
    before, state = learnt(module), torch.get_rng_state()
    watch = CollapseMonitor(
        settings,
        Silent(),
        select=loader(rows[32:], TwoViews(settings.views, image_size=32)),
        probe=loader(rows[:32], get_val_transforms(image_size=32)),
        groups=[row.group for row in rows[:32]],
    )
    assert watch.measure(module) == watch.measure(module)  # the same views each time
    assert torch.equal(state, torch.get_rng_state())
    assert module.model.projection.training
    assert all(torch.equal(value, learnt(module)[name]) for name, value in before.items())


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"method": "byol", "temperature": 0.2}, "temperature"),
        ({"momentum": 0.5}, "momentum"),
        ({"prototypes": 8}, "prototypes"),
        ({"method": "swav", "grad_cache_chunk": 8}, "grad_cache_chunk"),
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
def test_two_views_are_drawn_apart_and_every_setting_shows(changes):
    image = (torch.arange(3 * 60 * 80).reshape(3, 60, 80) * 37 % 251).to(torch.uint8)

    def draw(settings):
        torch.manual_seed(3)
        return torch.stack([TwoViews(settings, image_size=32)(image) for _ in range(8)])

    views = draw(PairConfig())
    assert views.shape == (8, 2, 3, 32, 32)
    assert views.dtype == torch.uint8
    assert not torch.equal(views[:, 0], views[:, 1])
    assert not torch.equal(draw(PairConfig(**changes)), views)
