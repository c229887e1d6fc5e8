"""The walk through an ONNX file finds every tensor that `onnx` finds."""

import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streetvision.bundle.runtimes.onnx_file import DATA_LOCATION, EXTERNAL_DATA, MESSAGES, names_another_file

OUTSIDE = onnx.TensorProto(name="w", data_location=onnx.TensorProto.EXTERNAL)


def reaches_a_tensor(descriptor, seen=()):
    if descriptor.name == "TensorProto":
        return True
    inner = [field.message_type for field in descriptor.fields if field.message_type]
    return any(reaches_a_tensor(kind, (*seen, kind)) for kind in inner if kind not in seen)


@pytest.mark.parametrize("name", MESSAGES)
def test_the_messages_are_those_of_onnx(name):
    fields = getattr(onnx, name).DESCRIPTOR.fields
    inner = {f.number: f.message_type for f in fields if f.message_type and name != "TensorProto"}
    assert MESSAGES[name] == {number: kind.name for number, kind in inner.items() if reaches_a_tensor(kind)}
    assert set(MESSAGES[name].values()) <= MESSAGES.keys()


def test_the_fields_of_a_tensor_are_those_of_onnx():
    numbers = {field.name: field.number for field in onnx.TensorProto.DESCRIPTOR.fields}
    assert (numbers["external_data"], numbers["data_location"]) == (EXTERNAL_DATA, DATA_LOCATION)


def models():
    """A model for each place of a tensor, with the list or the message that holds it."""
    for place in ("initializer", "attribute", "tensors", "subgraph", "sparse", "function", "training"):
        model = onnx.ModelProto(ir_version=10)
        model.graph.node.add(op_type="Relu")
        node = model.graph.node.add()
        yield (
            {
                "initializer": lambda m, _: m.graph.initializer.add(),
                "attribute": lambda _, n: n.attribute.add().t,
                "tensors": lambda _, n: n.attribute.add().tensors.add(),
                "subgraph": lambda _, n: n.attribute.add().graphs.add().node.add().attribute.add().g.initializer.add(),
                "sparse": lambda m, _: m.graph.sparse_initializer.add().indices,
                "function": lambda m, _: m.functions.add().node.add().attribute.add().t,
                "training": lambda m, _: m.training_info.add().algorithm.initializer.add(),
            }[place](model, node),
            model,
        )


@pytest.mark.parametrize("place", range(7))
def test_a_tensor_in_another_file_is_found_wherever_it_is(place):
    tensor, model = list(models())[place]
    tensor.CopyFrom(onnx.helper.make_tensor("w", onnx.TensorProto.FLOAT, [2], [1.0, 2.0]))
    assert not names_another_file(model.SerializeToString())
    tensor.CopyFrom(OUTSIDE)
    assert names_another_file(model.SerializeToString())
    tensor.ClearField("data_location")
    tensor.external_data.add(key="location", value="weights")
    assert names_another_file(model.SerializeToString())


def test_an_integer_in_more_bytes_than_needed_is_read():
    tensor = bytes([14 << 3, 0x81, 0x80, 0x00])  # data_location 1
    graph = bytes([5 << 3 | 2, len(tensor)]) + tensor
    content = bytes([7 << 3 | 2, 0x80 | len(graph), 0x00]) + graph
    assert onnx.load_model_from_string(content).graph.initializer[0].data_location == onnx.TensorProto.EXTERNAL
    assert names_another_file(content)


@pytest.mark.parametrize("content", [b"\x3a", b"\x3a\x05ab", b"\xff" * 11, b"\x3b\x3c", b"\x09\x00"])
def test_damaged_bytes_are_an_error(content):
    with pytest.raises(ValueError, match="protobuf"):
        names_another_file(content)


@given(st.binary(max_size=60))
def test_any_bytes_give_a_result_or_that_error(content):
    try:
        names_another_file(content)
    except ValueError as error:
        assert "protobuf" in str(error)
