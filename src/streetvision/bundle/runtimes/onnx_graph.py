"""ONNX Runtime on the CPU: one file that contains its weights. Imports torch only to write a graph."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from streetvision.bundle.runtimes.graph import INPUT, MODEL, Graph, import_extra, output_names
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

    def __init__(self, folder: Path, precision: Precision, threads: int, name: str = MODEL) -> None:  # noqa: ARG002
        runtime = _import_runtime("onnxruntime")
        (file,) = self.files_of(name)
        content = (folder / file).read_bytes()  # the precision is in the file
        if names_another_file(content):  # which would not be covered by the digests of the bundle
            raise ArtifactError(f"{file!r} reads its weights from another file", "export the bundle again")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3  # its warnings are about its own optimizations
        self._outputs = output_names(name)
        self._session = runtime.InferenceSession(content, options, providers=["CPUExecutionProvider"])

    def run(self, images: NDArray[np.uint8]) -> Sequence[NDArray[np.float32]]:
        """Run the graph on images (B, 3, h, w). Any number of threads may call."""
        outputs: list[NDArray[np.float32]] = self._session.run(self._outputs, {INPUT: np.ascontiguousarray(images)})
        return outputs

    @classmethod
    def write(
        cls,
        program: "torch.export.ExportedProgram",
        folder: Path,
        precision: Precision,
        images: Sequence[NDArray[np.uint8]],  # noqa: ARG003 (no precision needs calibration)
        name: str = MODEL,
    ) -> None:
        """Write the file; raises ConfigError for a model above the size limit of the format."""
        import_extra("onnxscript", install="streetvision[train]")
        if sum(tensor.nbytes for tensor in program.state_dict.values()) > MAX_BYTES:
            raise ConfigError("the model is larger than the limit of an ONNX file (2 GB)", "set --runtime openvino")
        (file,) = cls.files_of(name)
        if precision == "fp32":
            _convert(program, folder / file, name)
            return
        quantization = _import_runtime("onnxruntime.quantization")
        log_level = logging.root.level
        with TemporaryDirectory() as temporary:
            fp32 = Path(temporary) / file
            _convert(program, fp32, name)
            logging.root.setLevel(logging.ERROR)  # it recommends a preprocessing that the exporter has done
            try:
                quantization.quantize_dynamic(
                    fp32, folder / file, weight_type=quantization.QuantType.QInt8, per_channel=True
                )
            finally:
                logging.root.setLevel(log_level)


def _import_runtime(module: str) -> Any:
    """Import ONNX Runtime or a part of it, without the events that it sends and the files that it keeps for them."""
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # read at the import; the call is for an import before this one
    import_extra("onnxruntime", install="onnxruntime").disable_telemetry_events()
    return import_extra(module, install="streetvision[train]")


def _convert(program: "torch.export.ExportedProgram", path: Path, name: str) -> None:
    import torch

    outputs = list(output_names(name))
    converted = torch.onnx.export(program, dynamo=True, input_names=[INPUT], output_names=outputs, verbose=False)
    assert converted is not None, "dynamo=True without a file returns a program"
    converted.save(path)
