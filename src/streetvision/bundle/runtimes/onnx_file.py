"""Whether an ONNX file is self-contained, found in its bytes: the package `onnx` is not needed to predict.

The protobuf messages of a file are walked, and no tensor is copied.

References:
    https://protobuf.dev/programming-guides/encoding/
    https://github.com/onnx/onnx/blob/main/onnx/onnx.proto
"""

from collections.abc import Iterator, Mapping

MESSAGES: Mapping[str, Mapping[int, str]] = {
    "ModelProto": {7: "GraphProto", 20: "TrainingInfoProto", 25: "FunctionProto"},
    "GraphProto": {1: "NodeProto", 5: "TensorProto", 15: "SparseTensorProto"},
    "NodeProto": {5: "AttributeProto"},
    "AttributeProto": {
        5: "TensorProto",
        6: "GraphProto",
        10: "TensorProto",
        11: "GraphProto",
        22: "SparseTensorProto",
        23: "SparseTensorProto",
    },
    "FunctionProto": {7: "NodeProto", 11: "AttributeProto"},
    "SparseTensorProto": {1: "TensorProto", 2: "TensorProto"},
    "TrainingInfoProto": {1: "GraphProto", 2: "GraphProto"},
    "TensorProto": {},
}
"""Message -> number of a field -> its message, for the fields that can contain a tensor."""
EXTERNAL_DATA, DATA_LOCATION = 13, 14
"""Fields of a TensorProto: the entries about another file, and whether the tensor is in one (0: it is not)."""
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
"""Wire types."""
DAMAGED = "it is not a protobuf message"


def names_another_file(content: bytes) -> bool:
    """Return whether a tensor of an ONNX file is in another file; raises ValueError if it is not a message."""
    waiting = [("ModelProto", memoryview(content))]
    while waiting:
        kind, message = waiting.pop()
        for number, value in _fields(message):
            if kind == "TensorProto" and (number == EXTERNAL_DATA or (number == DATA_LOCATION and value != 0)):
                return True
            if isinstance(value, memoryview) and number in MESSAGES[kind]:
                waiting.append((MESSAGES[kind][number], value))
    return False


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview | None]]:
    """The fields of a message: number, and integer or bytes; None for numbers of fixed size."""
    position = 0
    while position < len(message):
        tag, position = _varint(message, position)
        number, wire_type = tag >> 3, tag & 7
        value: int | memoryview | None = None
        if wire_type == VARINT:
            value, position = _varint(message, position)
        elif wire_type in {FIXED64, FIXED32}:
            position += 8 if wire_type == FIXED64 else 4
        elif wire_type == BYTES:
            length, position = _varint(message, position)
            value = message[position : position + length]
            position += length
        else:
            raise ValueError(DAMAGED)
        if position > len(message):
            raise ValueError(DAMAGED)
        yield number, value


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    """An integer of up to 10 bytes with 7 bits each, the lowest first, and the position after it."""
    value = 0
    for shift, byte in enumerate(message[position : position + 10]):
        value |= (byte & 0x7F) << (7 * shift)
        if byte < 0x80:
            return value, position + shift + 1
    raise ValueError(DAMAGED)
