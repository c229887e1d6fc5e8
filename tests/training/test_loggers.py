import os

import pytest

from streetvision.contracts.errors import ConfigError
from streetvision.training.config import FrozenConfig
from streetvision.training.loggers import open_loggers
from streetvision.training.ssl.config import SimCLRConfig

ROWS = [{"epoch": epoch, "train_loss": 1.0 / epoch, "val_select_mcc": 0.1 * epoch} for epoch in (1, 2, 3)]


def log_rows(folder, kind=FrozenConfig, **settings):
    with open_loggers(folder, kind(**settings)) as loggers:
        for row in ROWS:
            for logger in loggers:
                logger.log_metrics(row, step=row["epoch"])


def test_tensorboard_has_every_epoch_of_this_run_only(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log_rows(tmp_path / "logs")
    log_rows(tmp_path / "logs")
    events = EventAccumulator(str(tmp_path / "logs" / "tensorboard")).Reload()
    events_logged = [(event.step, event.value) for event in events.Scalars("val_select_mcc")]
    assert events_logged == [(row["epoch"], pytest.approx(row["val_select_mcc"])) for row in ROWS]


def test_mlflow_writes_to_its_file_store_offline(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    log_rows(tmp_path / "logs", tracker="mlflow")
    client = mlflow.MlflowClient((tmp_path / "logs" / "mlflow").as_uri())
    (run,) = client.search_runs([client.get_experiment_by_name("streetvision").experiment_id])
    history = client.get_metric_history(run.info.run_id, "train_loss")
    assert [(metric.step, metric.value) for metric in history] == [(row["epoch"], row["train_loss"]) for row in ROWS]
    assert "MLFLOW_TRACKING_URI" not in os.environ  # a later run of this process does not log to this folder


@pytest.mark.parametrize("kind", [FrozenConfig, SimCLRConfig])
def test_wandb_writes_a_file_to_sync_later(tmp_path, kind):
    pytest.importorskip("wandb")
    log_rows(tmp_path / "logs", kind, tracker="wandb")
    (file,) = (tmp_path / "logs").glob("wandb/offline-run-*/run-*.wandb")
    assert file.stat().st_size > 0


def test_a_tracker_that_is_not_installed_is_an_error_with_the_extra_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    with pytest.raises(ConfigError, match="tracking") as caught:
        log_rows(tmp_path, tracker="wandb")
    assert "wandb" in caught.value.message


@pytest.mark.parametrize("kind", [FrozenConfig, SimCLRConfig])
def test_online_mlflow_logs_to_the_uri_of_the_environment(tmp_path, monkeypatch, kind):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "server").as_uri())
    log_rows(tmp_path / "logs", kind, tracker="mlflow", tracker_offline=False)
    assert not (tmp_path / "logs" / "mlflow").exists()
    client = mlflow.MlflowClient((tmp_path / "server").as_uri())
    assert client.get_experiment_by_name("streetvision")
