import csv
import os
import subprocess
import sys

import pytest
import torch

from streetvision.contracts.artifact_schema import ArtifactSchema
from streetvision.contracts.errors import ConfigError
from streetvision.models.config import HardwareConfig
from streetvision.training.distributed import check_world_size
from tests.conftest import TINY_MODEL

SETTINGS = [
    *TINY_MODEL,
    "pipeline.phases=[phase1]",
    "training.epochs=2",
    "training.batch_size=16",
    "training.mixed_precision.enabled=false",
    "data.fractions={train: 0.5, val_select: 0.2, val_calib: 0.2, val_test: 0.1}",  # an even TRAIN: no row twice
]


@pytest.mark.parametrize(
    "settings",
    [
        ["training=full"],
        [
            "training=peft",
            "hardware.strategy=fsdp",
            "training.gradient_clip_norm=1.0",
            "training.gradient_accumulation_steps=2",
        ],
    ],
    ids=["ddp", "fsdp"],
)
def test_two_processes_train_like_one(scenes, tmp_path, command, settings):
    """The same loss, the same choice and as many predictions as one process with the same batches."""
    own = [*SETTINGS, *settings]
    alone = [setting for setting in own if not setting.startswith("hardware")]
    one, two = ArtifactSchema(tmp_path / "one"), ArtifactSchema(tmp_path / "two")
    assert command("train", f"data.root={scenes}", f"run_dir={one.output_dir}", *alone)[0] == 0
    assert (
        command("train", f"data.root={scenes}", f"run_dir={two.output_dir}", *alone, "pipeline.phases=[data]")[0] == 0
    )
    starter = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    rest = [setting for setting in own if not setting.startswith("data.")]  # a run knows its data
    asked = ["-m", "streetvision", "train", f"run_dir={two.output_dir}", *rest]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [*starter, *asked, "hardware.devices=2"], capture_output=True, text=True, env=environment, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("VAL_SELECT MCC") == 1  # the second process says nothing
    rows = [list(csv.DictReader(schema.phase1_metrics_csv.open())) for schema in (one, two)]
    assert len(rows[0]) == len(rows[1]) == 2
    for alone, shared in zip(*rows, strict=True):
        for name in set(alone) - {"seconds"}:
            assert float(shared[name]) == pytest.approx(float(alone[name]), rel=1e-4, abs=1e-5), name
    alone, shared = (torch.load(schema.val_calib_logits, weights_only=True) for schema in (one, two))
    assert alone.shape == shared.shape
    torch.testing.assert_close(alone, shared, rtol=1e-3, atol=1e-4)


def test_what_the_first_process_refuses_is_told_by_it_alone(scenes, tmp_path):
    starter = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    asked = ["-m", "streetvision", "train", "data.root=nowhere", f"run_dir={tmp_path / 'run'}", *SETTINGS]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [*starter, *asked, "training=full", "hardware.devices=2"],
        capture_output=True,
        text=True,
        env=environment,
        timeout=300,
    )
    assert done.returncode == 1  # of torchrun
    assert done.stderr.count("error: data.root 'nowhere' is not there") == 1
    assert 'streetvision/cli.py", line' not in done.stderr  # no traceback of ours


def test_processes_that_were_not_started_are_asked_for_by_their_command():
    with pytest.raises(ConfigError, match="needs 2 processes, and 1 process was started") as caught:
        check_world_size(HardwareConfig(devices=2))
    assert caught.value.hint.startswith("torchrun --nnodes=1 --nproc-per-node=2 -m streetvision train")
