"""ONNX Runtime on the CPU: one file, whose weights lie within it."""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from streetvision.bundle.runtimes.graph import INPUT, OUTPUTS, Graph, Seen, need
from streetvision.contracts.errors import ArtifactError, ConfigError
from streetvision.contracts.policies import Precision

MAX_BYTES = 2_000_000_000
"""An ONNX file is one protobuf message, which holds 2 GiB at the most."""


class OnnxGraph(Graph):
    """model.onnx: fp32, or int8 weights with the ranges of activations found anew for every batch."""

    precisions = ("fp32", "int8")
    files = ("model.onnx",)
    package = "onnxruntime"

    def __init__(self, folder: Path, precision: Precision) -> None:  # noqa: ARG002 (the file is of one precision)
        runtime = need("onnxruntime", extra="onnx")
        content = (folder / self.files[0]).read_bytes()
        _check_within(content, self.files[0])
        options = runtime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3  # its warnings are about its own optimisations
        self._session = runtime.InferenceSession(content, options, providers=["CPUExecutionProvider"])

    def __call__(self, images: Tensor) -> Seen:
        """uint8 (B, 3, S, S) on the CPU -> what is seen in them."""
        found = self._session.run(OUTPUTS, {INPUT: images.contiguous().numpy()})
        return Seen(*map(torch.from_numpy, found))

    @classmethod
    def write(
        cls,
        program: torch.export.ExportedProgram,
        folder: Path,
        precision: Precision,
        images: Sequence[Tensor],  # noqa: ARG003 (no precision here is calibrated)
    ) -> None:
        """One file; raises ConfigError for a model that is larger than such a file can be."""
        need("onnxscript", extra="onnx")
        if sum(tensor.nbytes for tensor in program.state_dict.values()) > MAX_BYTES:
            raise ConfigError("this model is larger than an ONNX file can be (2 GB)", "take --runtime openvino")
        path = folder / cls.files[0]
        if precision == "fp32":
            _convert(program, path)
            return
        with TemporaryDirectory() as name:
            plain = Path(name) / cls.files[0]
            _convert(program, plain)
            _quantize(plain, path)


def _convert(program: torch.export.ExportedProgram, path: Path) -> None:
    converted = torch.onnx.export(program, dynamo=True, input_names=[INPUT], output_names=list(OUTPUTS), verbose=False)
    assert converted is not None, "dynamo=True without a file gives a program"
    converted.save(path)


def _quantize(plain: Path, path: Path) -> None:
    """int8 weights by channel."""
    quantization = need("onnxruntime.quantization", extra="onnx")
    before = logging.root.level
    logging.root.setLevel(logging.ERROR)  # it recommends a step of preparation that the exporter has done
    try:
        quantization.quantize_dynamic(plain, path, weight_type=quantization.QuantType.QInt8, per_channel=True)
    finally:
        logging.root.setLevel(before)


def _check_within(content: bytes, name: str) -> None:
    """Raise ArtifactError when the graph would read another file: a bundle's paths never leave what is sealed."""
    onnx = need("onnx", extra="onnx")
    model = onnx.load_model_from_string(content)
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in _tensors(model, onnx.TensorProto)):
        raise ArtifactError(f"{name!r} reads its weights from another file", "export the bundle again")


def _tensors(message: Any, kind: type) -> Iterator[Any]:
    """Every tensor in a protobuf message, at any depth: initial values, attributes, functions, subgraphs."""
    for field, value in message.ListFields():
        if field.message_type is not None:
            for part in (value,) if hasattr(value, "ListFields") else value:
                if isinstance(part, kind):
                    yield part
                else:
                    yield from _tensors(part, kind)
