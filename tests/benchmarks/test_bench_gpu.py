from types import SimpleNamespace

import pytest
import torch

from benchmarks import bench_gpu
from streetvision.contracts.errors import ConfigError
from streetvision.contracts.progress import Silent
from streetvision.models.backbone import BackboneConfig
from streetvision.models.config import ModelConfig
from streetvision.models.losses import make_loss
from streetvision.models.module import load_classifier
from streetvision.training.config import FullConfig, MixedPrecisionConfig
from streetvision.training.finetune_modes import prepare
from streetvision.training.supervised import SupervisedModule

SMALL = ModelConfig(backbone=BackboneConfig(source="random", width=16, depth=2, heads=2), image_size=32)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_it_says_so():
    with pytest.raises(ConfigError, match="this machine has none"):
        bench_gpu.bench_gpu(Silent())


def test_a_step_is_timed_behind_the_warm_up(monkeypatch):
    """Lightning's own steps, from the end of one to that of the last."""
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    times = iter([10.0, 16.0])
    monkeypatch.setattr(bench_gpu, "time", SimpleNamespace(perf_counter=lambda: next(times)))
    config = FullConfig(mixed_precision=MixedPrecisionConfig(enabled=False), batch_size=4, epochs=1)
    classifier = load_classifier(SMALL)
    prepare(classifier, config)
    module = SupervisedModule(classifier, config, loss=make_loss(config.loss, (0, 1)))
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    batches = bench_gpu.Repeated((images, torch.arange(4) % 2), steps=5)
    assert bench_gpu._seconds_an_image(module, batches, warm_up=2) == 6.0 / (3 * 4)


def test_operations_are_those_of_the_products_forward_and_backward(monkeypatch):
    """A linear layer of 8 to 8 on one row: 128 forward, and twice as many backward."""
    monkeypatch.setattr(bench_gpu, "IMAGE_SIZE", 8)
    layer = torch.nn.Linear(8, 8, bias=False)
    rows = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 8, 8, bias=False), layer)

    class Floats(torch.nn.Module):
        def forward(self, images):
            return rows(images.float())

    found = bench_gpu._operations(Floats(), torch.device("cpu"))
    first, second = 2 * 192 * 8, 2 * 8 * 8
    assert found == 2 * first + 3 * second  # nothing asks for the gradient at the images
