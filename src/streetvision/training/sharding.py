"""Weights, gradients and moments cut among processes: fully sharded data parallel.

Zhao et al., PyTorch FSDP, arXiv 2304.11277; here by torch's `fully_shard`, one group of weights for each block.
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
    """What Lightning takes for `config.strategy`."""
    if config.strategy != "fsdp":
        return config.strategy
    return ModelParallelStrategy(
        data_parallel_size=config.processes, tensor_parallel_size=1, save_distributed_checkpoint=False
    )


def shard(model: nn.Module, mesh: DeviceMesh) -> None:
    """Cut the weights of `model` in place: each block's gathers when it runs, the rest's when `model` does."""
    for backbone in [module for module in model.modules() if isinstance(module, Backbone)]:
        for name in block_names(backbone.spec.lora_targets):
            fully_shard(backbone.get_submodule(name), mesh=mesh)
    fully_shard(model, mesh=mesh)


def whole(value: Tensor) -> Tensor:
    """A copy on the CPU; of one that is cut, with all processes taking part."""
    value = value.detach()
    return (value.full_tensor() if isinstance(value, DTensor) else value).cpu().clone()
