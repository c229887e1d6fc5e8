"""Every key of SECTIONS, and every other key of SHOWN_BY, has a test that shows its effect; SHOWN_BY names it.

`python -m tests.pipeline.pinned_settings` verifies the table: with a key pinned to its default, the test must fail.
"""

from pathlib import Path

import pytest

from streetvision.pipeline.settings import all_settings

SHOWN_BY = {
    "data.group_pattern": "pipeline/test_prepare_data.py::test_a_pattern_of_names_decides_which_images_share_a_group",
    "data.source_pattern": "experiments/test_cross_validation.py::test_a_source_is_predicted_without_its_images",
    "training.mode": "training/test_finetune_modes.py::test_frozen_trains_the_head_and_full_all_but_the_mask_token",
    "training.epochs": "pipeline/test_train_baseline.py::test_metrics_hold_one_row_an_epoch",
    "training.batch_size": "training/test_trainer.py::test_the_bar_advances_once_per_step",
    "training.gradient_accumulation_steps": "training/test_trainer.py::test_accumulation_enlarges_the_batch",
    "training.micro_batch_size": "training/test_trainer.py::test_micro_batches_give_the_same_step",
    "training.learning_rate": "training/test_trainer.py::test_settings_of_the_optimizer_change_the_weights",
    "training.layer_decay": "pipeline/test_train_baseline.py::test_layers_far_from_the_head_learn_more_slowly",
    "training.weight_decay": "training/test_trainer.py::test_settings_of_the_optimizer_change_the_weights",
    "training.warmup_fraction": "training/test_trainer.py::test_settings_of_the_optimizer_change_the_weights",
    "training.gradient_clip_norm": "training/test_trainer.py::test_gradient_clipping_changes_the_steps",
    "training.ema_decay": "training/test_trainer.py::test_averaged_weights_compete_with_raw_weights",
    "training.early_stopping_patience": "training/test_trainer.py::test_patience_ends_training",
    "training.save_top_k": "training/test_trainer.py::test_the_best_checkpoints_are_kept_in_order",
    "training.checkpoint_every_n_steps": "training/test_trainer.py::test_an_interrupted_run_resumes_to_the_same_bits",
    "training.gate": "pipeline/test_end_to_end.py::test_without_its_gate_the_full_mode_trains_everything",
    "training.budget_minutes": "pipeline/test_train_baseline.py::test_a_budget_that_is_too_short_ships_the_probe",
    "training.last_blocks": "training/test_finetune_modes.py::test_last_n_trains_the_last_blocks",
    "training.mixed_precision": "training/test_trainer.py::test_the_trainer_gets_the_configured_settings",
    "training.mixed_precision.dtype": "training/test_precision.py::test_precision_follows_the_device_and_is_never_fp16",
    "training.tracker": "training/test_loggers.py::test_wandb_writes_a_file",
    "training.tracker_offline": "training/test_loggers.py::test_online_mlflow_logs_to_the_uri_of_the_environment",
    "training.seed": "training/test_trainer.py::test_the_same_seed_gives_the_same_bits",
    "training.loss": "models/test_losses.py::test_every_loss_equals_its_formula",
    "training.adapter": "models/test_adapters.py::test_settings_that_change",
    "hardware": "training/test_trainer.py::test_the_trainer_gets_the_configured_settings",
    "hardware.channels_last": "models/test_device.py::test_images_are_channels_last_if_configured",
    "hardware.tf32": "models/test_device.py::test_memory_format_and_tf32_are_applied",
    "hardware.compile": "models/test_device.py::test_every_setting_reaches_the_compiler",
    "hardware.compiler": "models/test_device.py::test_every_setting_reaches_the_compiler",
    "phase4a.views.positives": "pipeline/test_explora.py::test_positives_from_groups_need_groups",
    "phase4a.views": "training/ssl/test_explora.py::test_views_differ_and_every_setting_changes_them",
    "phase4a.gradient_accumulation_steps": "training/ssl/test_explora.py::test_accumulation_changes_the_step",
    "phase4a.grad_cache_chunk": "training/ssl/test_explora.py::test_the_cache_embeds_at_most_one_chunk_of_views",
    "phase4a.checkpoint_every_n_steps": "training/ssl/test_explora.py::test_an_interrupted_run_ends_in_equal_weights",
    "phase4a.knn_probe_size": "pipeline/test_explora.py::test_the_knn_probe_has_its_size_and_a_seed_its_weights",
    "phase4a.tracker": "training/test_loggers.py::test_wandb_writes_a_file",
    "phase4a.tracker_offline": "training/test_loggers.py::test_online_mlflow_logs_to_the_uri_of_the_environment",
    "phase4a.seed": "pipeline/test_explora.py::test_phase_1_trains_again_after_another_adaptation",
    "phase4a": "training/ssl/test_explora.py::test_every_setting_changes_the_trained_weights",
    "augmentation.scales": "data/test_augmentation.py::test_a_batch_has_one_size",
    "augmentation.mixup_alpha": "data/test_augmentation.py::test_mixed_batches_have_mixed_labels",
    "augmentation.cutmix_alpha": "data/test_augmentation.py::test_mixed_batches_have_mixed_labels",
    "augmentation.validator_levels": "data/test_augmentation.py::test_the_levels_of_the_validator_are_applied",
    "augmentation.gate": "pipeline/test_train_baseline.py::test_the_gate_writes_its_decision",
    "augmentation.trivial_augment_wide.num_magnitude_bins": "data/test_augmentation.py::test_settings_of_a_policy",
    "augmentation.aug_mix": "data/test_augmentation.py::test_settings_of_a_policy",
    "augmentation": "data/test_augmentation.py::test_every_setting_of_the_augmentation_changes_the_image",
}
"""Key or prefix -> file and start of the name of the test that shows its effect; the longest prefix counts."""

SECTIONS = ("training", "hardware", "augmentation", "phase4a")


def keys_with_effect():
    """The keys of SECTIONS, and further ones of SHOWN_BY."""
    return [key for key in all_settings() if key in SHOWN_BY or key.startswith(tuple(f"{name}." for name in SECTIONS))]


def shown_by(key):
    """File and start of the name of the test that shows the effect of `key`."""
    prefixes = [name for name in SHOWN_BY if key == name or key.startswith(f"{name}.")]
    assert prefixes, f"no test is named for {key}"
    return SHOWN_BY[max(prefixes, key=len)].split("::")


@pytest.mark.parametrize("section", [*SECTIONS, "data"])
def test_every_setting_has_a_test_that_shows_its_effect(section):
    tests = Path(__file__).parents[1]
    for key in keys_with_effect():
        if key.startswith(f"{section}."):
            file, test = shown_by(key)
            assert f"def {test}" in (tests / file).read_text(), key
