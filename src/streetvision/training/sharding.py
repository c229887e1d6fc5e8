"""Fully sharded data parallel training: weights, gradients and optimizer states are split over the processes.

Zhao et al. 2023, PyTorch FSDP, arXiv 2304.11277; here by torch's `fully_shard`, with one group of weights per block.
"""

from lightning.pytorch.strategies import ModelParallelStrategy, Strategy
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from streetvision.models.adapters import block_names
from streetvision.models.config import HardwareConfig
from streetvision.models.network import Backbone


def lightning_strategy(config: HardwareConfig) -> str | Strategy:
    """Return the strategy for Lightning's Trainer."""
    if config.strategy != "fsdp":
        return config.strategy
    return ModelParallelStrategy(
        data_parallel_size=config.processes, tensor_parallel_size=1, save_distributed_checkpoint=False
    )


def shard(model: nn.Module, mesh: DeviceMesh) -> None:
    """Shard `model` in place: the weights of a block are gathered when it runs, all others when `model` runs."""
    for backbone in [module for module in model.modules() if isinstance(module, Backbone)]:
        for name in block_names(backbone.spec.lora_targets):
            fully_shard(backbone.get_submodule(name), mesh=mesh)
    fully_shard(model, mesh=mesh)


def full_cpu_copy(value: Tensor) -> Tensor:
    """Return a copy on the CPU; if `value` is sharded, all processes must call this."""
    value = value.detach()
    return (value.full_tensor() if isinstance(value, DTensor) else value).cpu().clone()
