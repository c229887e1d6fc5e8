import csv
import os
import re
import subprocess
import sys

import pytest
import torch

from streetvision.contracts.artifact_schema import ArtifactSchema
from streetvision.contracts.errors import ConfigError
from streetvision.models.config import HardwareConfig
from streetvision.training.distributed import check_world_size
from tests.conftest import TINY_MODEL
from tests.torchrun import torchrun

SETTINGS = [
    *TINY_MODEL,
    "pipeline.phases=[phase1]",
    "training.epochs=2",
    "training.batch_size=16",
    "training.mixed_precision.enabled=false",
    "data.fractions={train: 0.5, val_select: 0.2, val_calib: 0.2, val_test: 0.1}",  # an even TRAIN: no row is repeated
]


@pytest.mark.long
@pytest.mark.parametrize(
    "settings",
    [
        ["training=full"],
        [
            "training=peft",
            "training.loss.name=focal",  # no solved head: from its optimum AdamW enlarges rounding errors
            "hardware.strategy=fsdp",
            "training.gradient_clip_norm=1.0",
            "training.gradient_accumulation_steps=2",
        ],
    ],
    ids=["ddp", "fsdp"],
)
def test_two_processes_train_like_one(scenes, tmp_path, command, settings):
    """Equal metrics in every epoch, and equal logits, as one process with the same batches."""
    all_settings = [*SETTINGS, *settings]
    single_settings = [setting for setting in all_settings if not setting.startswith("hardware")]
    single, double = ArtifactSchema(tmp_path / "single"), ArtifactSchema(tmp_path / "double")
    code, *_ = command("train", f"data.root={scenes}", f"run_dir={single.output_dir}", *single_settings)
    assert code in (0, 3)  # 3: one class only, after so few steps
    data_only = [*single_settings, "pipeline.phases=[data]"]
    assert command("train", f"data.root={scenes}", f"run_dir={double.output_dir}", *data_only)[0] == 0
    without_data = [setting for setting in all_settings if not setting.startswith("data.")]  # the run knows its data
    arguments = ["train", f"run_dir={double.output_dir}", *without_data, "hardware.devices=2"]
    double_code, out = torchrun(arguments, tmp_path / "log")
    assert (double_code == 0) == (code == 0), out
    assert out.count("VAL_SELECT MCC") == 1  # only rank 0 prints
    histories = [list(csv.DictReader(schema.phase1_metrics_csv.open())) for schema in (single, double)]
    assert len(histories[0]) == len(histories[1]) == 2
    for expected, row in zip(*histories, strict=True):
        for name in set(expected) - {"seconds"}:
            assert float(row[name]) == pytest.approx(float(expected[name]), rel=1e-4, abs=1e-5), name
    expected, logits = (torch.load(schema.val_calib_logits, weights_only=True) for schema in (single, double))
    assert expected.shape == logits.shape
    torch.testing.assert_close(expected, logits, rtol=1e-3, atol=1e-4)


def test_only_rank_0_reports_a_user_error(tmp_path):
    """By torchrun itself."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    run = ["-m", "streetvision", "train", "data.root=nowhere", f"run_dir={tmp_path / 'run'}", "hardware.devices=2"]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    result = subprocess.run(
        [*launcher, *run, *SETTINGS, "training=full"], capture_output=True, text=True, env=environment, timeout=300
    )
    assert result.returncode == 1  # the exit code of torchrun
    assert len(re.findall("error: .*'nowhere'", result.stderr)) == 1
    assert not re.search('streetvision/.*", line', result.stderr)  # no traceback of this package


def test_missing_processes_are_an_error_whose_hint_is_the_command():
    with pytest.raises(ConfigError, match="needs 2 processes, and 1 process was started") as caught:
        check_world_size(HardwareConfig(devices=2))
    assert caught.value.hint.startswith("torchrun --nnodes=1 --nproc-per-node=2 -m streetvision train")
