"""Every key of configs/training, configs/data and configs/phase4a changes something: here is the place that says what.

`python -m tests.pipeline.pinned_settings` proves it: with a key pinned to its default, the test named here must fail.
"""

from importlib import resources
from pathlib import Path

import pytest
import yaml

from streetvision.data.config import AugmentationConfig, LoaderConfig
from streetvision.pipeline.config import settings
from streetvision.training.config import TrainingConfig
from streetvision.training.ssl.config import ExPLoRAConfig

SHOWN_BY = {
    "training.mode": "training/test_finetune_modes.py::test_frozen_leaves_the_backbone_and_full_all_but_the_mask_token",
    "training.epochs": "pipeline/test_train_baseline.py::test_metrics_hold_one_row_an_epoch",
    "training.batch_size": "training/test_trainer.py::test_the_bar_moves_once_for_every_step",
    "training.gradient_accumulation_steps": "training/test_trainer.py::test_what_lightning_does_is_what_was_asked",
    "training.learning_rate": "training/test_trainer.py::test_scalars_of_the_optimizer_move_the_weights",
    "training.layer_decay": "pipeline/test_train_baseline.py::test_layers_far_from_the_head_learn_more_slowly",
    "training.weight_decay": "training/test_trainer.py::test_scalars_of_the_optimizer_move_the_weights",
    "training.warmup_fraction": "training/test_trainer.py::test_scalars_of_the_optimizer_move_the_weights",
    "training.gradient_clip_norm": "training/test_trainer.py::test_clipping_shortens_the_steps",
    "training.ema_decay": "training/test_trainer.py::test_the_average_is_judged_beside_the_raw_weights",
    "training.early_stopping_patience": "training/test_trainer.py::test_patience_ends_training",
    "training.save_top_k": "training/test_trainer.py::test_the_best_states_are_kept_in_order",
    "training.checkpoint_every_n_steps": "training/test_trainer.py::test_an_interrupted_run_goes_on_to_the_same_bits",
    "training.last_blocks": "training/test_finetune_modes.py::test_last_n_is_the_last_blocks",
    "training.precision": "training/test_trainer.py::test_what_lightning_does_is_what_was_asked",
    "training.tracker": "training/test_loggers.py::test_wandb_writes_a_file",
    "training.tracker_offline": "training/test_loggers.py::test_online_goes_where_the_environment_points",
    "training.seed": "training/test_trainer.py::test_the_same_seed_gives_the_same_bits",
    "training.loss": "models/test_losses.py::test_every_loss_is_its_formula",
    "training.adapter": "models/test_adapters.py::test_every_setting_changes",
    "training.compile": "models/test_device.py::test_every_setting_reaches_the_compiler",
    "training.hardware.devices": "training/test_trainer.py::test_what_lightning_does_is_what_was_asked",
    "training.hardware.num_nodes": "training/test_trainer.py::test_what_lightning_does_is_what_was_asked",
    "training.hardware.strategy": "training/test_trainer.py::test_what_lightning_does_is_what_was_asked",
    "training.hardware.channels_last": "models/test_device.py::test_images_come_channels_last_when_asked",
    "training.hardware.tf32": "models/test_device.py::test_memory_is_laid_out_as_asked",
    "phase4a.views.positives": "pipeline/test_explora.py::test_partners_from_groups_need_groups",
    "phase4a.views": "training/ssl/test_explora.py::test_two_views_are_drawn_apart_and_every_setting_shows",
    "phase4a.gradient_accumulation_steps": "training/ssl/test_explora.py::test_accumulation_is_another_step",
    "phase4a.grad_cache_chunk": "training/ssl/test_explora.py::test_no_more_views_than_asked_are_in_memory_at_once",
    "phase4a.checkpoint_every_n_steps": "training/ssl/test_explora.py::test_an_interrupted_run_ends_in_equal_weights",
    "phase4a.knn_probe_size": "pipeline/test_explora.py::test_no_more_neighbours_are_asked_than_wanted",
    "phase4a.tracker": "training/test_loggers.py::test_wandb_writes_a_file",
    "phase4a.tracker_offline": "training/test_loggers.py::test_online_goes_where_the_environment_points",
    "phase4a.hardware.channels_last": "models/test_device.py::test_images_come_channels_last_when_asked",
    "phase4a.hardware.tf32": "models/test_device.py::test_memory_is_laid_out_as_asked",
    "phase4a.hardware": "training/test_trainer.py::test_what_lightning_does_is_what_was_asked",
    "phase4a.seed": "pipeline/test_explora.py::test_another_seed_draws_other_weights",
    "phase4a": "training/ssl/test_explora.py::test_every_setting_changes_what_is_learnt",
    "augmentation.scales": "data/test_augmentation.py::test_a_batch_has_one_size",
    "augmentation.mixup_alpha": "data/test_augmentation.py::test_mixed_batches_have_mixed_labels",
    "augmentation.cutmix_alpha": "data/test_augmentation.py::test_mixed_batches_have_mixed_labels",
    "augmentation.validator_levels": "data/test_augmentation.py::test_levels_of_the_validator",
    "augmentation.gate": "pipeline/test_train_baseline.py::test_the_gate_leaves_its_verdict",
    "augmentation": "data/test_augmentation.py::test_every_setting_of_the_augmentation_changes_the_picture",
}
"""Key, or what several begin with -> the test that sees it change something; the longest that fits counts."""


SECTIONS = {"training": TrainingConfig, "augmentation": AugmentationConfig, "phase4a": ExPLoRAConfig}


def shown_by(key):
    """File and beginning of the name of the test that sees `key` change something."""
    fits = [name for name in SHOWN_BY if key == name or key.startswith(f"{name}.")]
    assert fits, f"no test is named for {key}"
    return SHOWN_BY[max(fits, key=len)].split("::")


@pytest.mark.parametrize("prefix", SECTIONS)
def test_every_setting_is_seen_by_a_test(prefix):
    tests = Path(__file__).parents[1]
    for key, _ in settings(SECTIONS[prefix], f"{prefix}."):
        file, test = shown_by(key)
        assert f"def {test}" in (tests / file).read_text(), key


def test_the_packaged_augmentation_is_the_models_own_defaults():
    file = resources.files("streetvision") / "configs" / "data" / "augmentation.yaml"
    assert AugmentationConfig.model_validate(yaml.safe_load(file.read_text())) == AugmentationConfig()
    assert LoaderConfig().cache_image_size is None
