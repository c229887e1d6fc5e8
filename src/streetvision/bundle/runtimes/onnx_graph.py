"""ONNX Runtime on the CPU: one file that contains its weights. Imports torch only to write a graph."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from streetvision.bundle.runtimes.graph import INPUT, OUTPUTS, Graph, GraphOutput, import_extra
from streetvision.bundle.runtimes.onnx_file import names_another_file
from streetvision.contracts.errors import ArtifactError, ConfigError
from streetvision.contracts.policies import Precision

if TYPE_CHECKING:
    import torch

MAX_BYTES = 2_000_000_000
"""Largest size of an ONNX file: it is one protobuf message, which is limited to 2 GiB."""


class OnnxGraph(Graph):
    """model.onnx: fp32, or int8 weights with dynamic quantization of activations."""

    precisions = ("fp32", "int8")
    files = ("model.onnx",)
    package = "onnxruntime"

    def __init__(self, folder: Path, precision: Precision, threads: int) -> None:  # noqa: ARG002 (it is in the file)
        runtime = _import_runtime("onnxruntime")
        content = (folder / self.files[0]).read_bytes()
        if names_another_file(content):  # which would not be covered by the digests of the bundle
            raise ArtifactError(f"{self.files[0]!r} reads its weights from another file", "export the bundle again")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3  # its warnings are about its own optimizations
        self._session = runtime.InferenceSession(content, options, providers=["CPUExecutionProvider"])

    def __call__(self, images: NDArray[np.uint8]) -> GraphOutput:
        """Run the graph on images (B, 3, h, w). Any number of threads may call."""
        return GraphOutput(*self._session.run(OUTPUTS, {INPUT: np.ascontiguousarray(images)}))

    @classmethod
    def write(
        cls,
        program: "torch.export.ExportedProgram",
        folder: Path,
        precision: Precision,
        images: Sequence[NDArray[np.uint8]],  # noqa: ARG003 (no precision needs calibration)
    ) -> None:
        """Write model.onnx; raises ConfigError for a model above the size limit of the format."""
        import_extra("onnxscript", install="streetvision[train]")
        if sum(tensor.nbytes for tensor in program.state_dict.values()) > MAX_BYTES:
            raise ConfigError("the model is larger than the limit of an ONNX file (2 GB)", "set --runtime openvino")
        path = folder / cls.files[0]
        if precision == "fp32":
            _convert(program, path)
            return
        quantization = _import_runtime("onnxruntime.quantization")
        log_level = logging.root.level
        with TemporaryDirectory() as name:
            fp32 = Path(name) / cls.files[0]
            _convert(program, fp32)
            logging.root.setLevel(logging.ERROR)  # it recommends a preprocessing that the exporter has done
            try:
                quantization.quantize_dynamic(fp32, path, weight_type=quantization.QuantType.QInt8, per_channel=True)
            finally:
                logging.root.setLevel(log_level)


def _import_runtime(module: str) -> Any:
    """Import ONNX Runtime or a part of it, without the events that it sends and the files that it keeps for them."""
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # read at the import; the call is for an import before this one
    import_extra("onnxruntime", install="onnxruntime").disable_telemetry_events()
    return import_extra(module, install="streetvision[train]")


def _convert(program: "torch.export.ExportedProgram", path: Path) -> None:
    import torch

    converted = torch.onnx.export(program, dynamo=True, input_names=[INPUT], output_names=list(OUTPUTS), verbose=False)
    assert converted is not None, "dynamo=True without a file returns a program"
    converted.save(path)
