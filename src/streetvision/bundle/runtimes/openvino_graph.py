"""OpenVINO on the CPU: two files; fp32 and bf16 with the same weights, int8 by NNCF. Imports torch only to write."""

import contextlib
import io
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from streetvision.bundle.runtimes.graph import INPUT, MODEL, Graph, import_extra, output_names
from streetvision.contracts.errors import ConfigError
from streetvision.contracts.policies import Precision

if TYPE_CHECKING:
    import torch


class OpenvinoGraph(Graph):
    """model.xml and model.bin."""

    precisions = ("fp32", "bf16", "int8")
    calibrated = frozenset({"int8"})
    files = ("model.xml", "model.bin")
    package = "openvino"

    def __init__(self, folder: Path, precision: Precision, threads: int, name: str = MODEL) -> None:
        core = _core()
        network = core.read_model(*(folder / file for file in self.files_of(name)))
        settings = {
            # Set explicitly, because the default is bf16 where the CPU has it; an int8 graph has fp32 operations too.
            "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
        }
        self._outputs = output_names(name)
        self._compiled = core.compile_model(network, "CPU", settings)
        self._lock = Lock()  # the compiled model has one request, which serves one caller at a time

    def run(self, images: NDArray[np.uint8]) -> Sequence[NDArray[np.float32]]:
        """Run the graph on images (B, 3, h, w). Any number of threads may call."""
        with self._lock:
            outputs = self._compiled({INPUT: np.ascontiguousarray(images)})
            return [outputs[name].copy() for name in self._outputs]

    @classmethod
    def write(
        cls,
        program: "torch.export.ExportedProgram",
        folder: Path,
        precision: Precision,
        images: Sequence[NDArray[np.uint8]],
        name: str = MODEL,
    ) -> None:
        """Write both files; raises ConfigError for bf16 on a CPU that does not compute in bf16."""
        import torch

        from streetvision.models.device import has_fast_bf16

        if precision == "bf16" and not has_fast_bf16(torch.device("cpu")):
            raise ConfigError(
                "this CPU does not compute in bf16, so the rounding cannot be measured here",
                "export on a CPU with bf16 (see streetvision doctor), or set --precision int8",
            )
        openvino = _import_openvino()
        with torch.no_grad():
            network = openvino.convert_model(program)
        (graph_input,) = network.inputs
        graph_input.get_tensor().set_names({INPUT})
        for output, output_name in zip(network.outputs, output_names(name), strict=True):
            output.get_tensor().set_names({output_name})
        (example,), _ = program.example_inputs
        network.reshape({INPUT: [-1, *example.shape[1:]]})
        if precision == "int8":
            network = _quantize(network, images)
        openvino.save_model(network, folder / cls.files_of(name)[0], compress_to_fp16=False)


def _quantize(network: Any, images: Sequence[NDArray[np.uint8]]) -> Any:
    """Quantize to int8. The progress bars and messages of NNCF are hidden."""
    _disable_telemetry()
    with contextlib.redirect_stdout(io.StringIO()):
        logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # it warns that CUDA is missing
        nncf = import_extra("nncf", install="streetvision[nncf]")
        nncf.set_log_level(logging.ERROR)
        dataset = nncf.Dataset(list(images))
        return nncf.quantize(network, dataset, model_type=nncf.ModelType.TRANSFORMER, subset_size=len(images))


_cores: list[Any] = []
_cores_lock = Lock()


def _core() -> Any:
    """Return the only Core of this process, which is never released.

    Each Core sets an alternate signal stack and restores the stack before it when it is released. With several that are
    released in another order, a freed stack would remain set, and the next signal would crash the process.
    """
    openvino = _import_openvino()
    with _cores_lock:
        if not _cores:
            _cores.append(openvino.Core())
        return _cores[0]


def _import_openvino() -> Any:
    _disable_telemetry()
    return import_extra("openvino", install="streetvision[openvino]")


def _disable_telemetry() -> None:
    """Stop OpenVINO and NNCF from reporting usage: they report nothing if this module cannot be imported."""
    sys.modules["openvino_telemetry"] = cast(ModuleType, None)
