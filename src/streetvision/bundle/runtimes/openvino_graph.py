"""OpenVINO on the CPU: two files, fp32 and bf16 of the same weights, int8 through NNCF with images of TRAIN."""

import contextlib
import io
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from types import ModuleType
from typing import Any, cast

import torch
from torch import Tensor

from streetvision.bundle.runtimes.graph import INPUT, OUTPUTS, Graph, Seen, need
from streetvision.contracts.errors import ConfigError
from streetvision.contracts.policies import Precision
from streetvision.models.device import has_fast_bf16

EXTRA = "openvino"


class OpenvinoGraph(Graph):
    """model.xml and model.bin."""

    precisions = ("fp32", "bf16", "int8")
    calibrated = frozenset({"int8"})
    files = ("model.xml", "model.bin")
    package = "openvino"

    def __init__(self, folder: Path, precision: Precision) -> None:
        core = _openvino().Core()
        network = core.read_model(folder / self.files[0], folder / self.files[1])
        settings = {
            # Said outright, since the default is bf16 wherever the processor has it; of int8 it is about the rest.
            "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "NUM_STREAMS": 1,
        }
        self._compiled = core.compile_model(network, "CPU", settings)
        self._lock = Lock()  # its one request answers one caller at a time

    def __call__(self, images: Tensor) -> Seen:
        """uint8 (B, 3, S, S) on the CPU -> what is seen in them."""
        with self._lock:
            found = self._compiled({INPUT: images.contiguous().numpy()})
        return Seen(*(torch.from_numpy(found[name]) for name in OUTPUTS))

    @classmethod
    def write(
        cls, program: torch.export.ExportedProgram, folder: Path, precision: Precision, images: Sequence[Tensor]
    ) -> None:
        """The two files; raises ConfigError for bf16 on a processor that has none."""
        if precision == "bf16" and not has_fast_bf16(torch.device("cpu")):
            raise ConfigError(
                "this processor does not compute in bf16, so that its rounding cannot be measured here",
                "export on one that does (streetvision doctor tells), or take --precision int8",
            )
        openvino = _openvino()
        with torch.no_grad():
            network = openvino.convert_model(program)
        (given,) = network.inputs
        given.get_tensor().set_names({INPUT})
        for output, name in zip(network.outputs, OUTPUTS, strict=True):
            output.get_tensor().set_names({name})
        side = _side(program)
        network.reshape({INPUT: [-1, 3, side, side]})
        if precision == "int8":
            network = _quantize(network, images)
        openvino.save_model(network, folder / cls.files[0], compress_to_fp16=False)


def _side(program: torch.export.ExportedProgram) -> int:
    """S of the example that the program was captured with."""
    (example,), _ = program.example_inputs
    return int(example.shape[-1])


def _quantize(network: Any, images: Sequence[Tensor]) -> Any:
    """int8 products; NNCF shows bars and remarks of its own, which are kept from the terminal."""
    _without_telemetry()
    with contextlib.redirect_stdout(io.StringIO()):
        logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # it misses CUDA, which nobody asked for
        nncf = need("nncf", extra=EXTRA)
        nncf.set_log_level(logging.ERROR)
        arrays = nncf.Dataset([image.numpy() for image in images])
        return nncf.quantize(network, arrays, model_type=nncf.ModelType.TRANSFORMER, subset_size=len(images))


def _openvino() -> Any:
    _without_telemetry()
    return need("openvino", extra=EXTRA)


def _without_telemetry() -> None:
    """Keep OpenVINO and NNCF from telling their maker of every use: both are silent where this cannot be imported."""
    sys.modules["openvino_telemetry"] = cast(ModuleType, None)
