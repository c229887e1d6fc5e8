import os
import pickle
import resource
import zipfile

import pytest
import torch
from safetensors.torch import save_file

from streetvision.contracts.errors import ArtifactError
from streetvision.io.tensors import check_keys, load_checkpoint, load_into, load_state, load_tensor, save_tensors


def test_equal_tensors_give_equal_bytes_for_any_file_name(tmp_path):
    state = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor([1])}
    save_tensors(tmp_path / "x.pth", state)
    save_tensors(tmp_path / "other.pth", {k: v.clone() for k, v in state.items()})
    assert (tmp_path / "x.pth").read_bytes() == (tmp_path / "other.pth").read_bytes()
    loaded = load_state(tmp_path / "x.pth")
    assert all(torch.equal(loaded[k], v) for k, v in state.items())


@pytest.mark.parametrize("limit", [0, 1000, 30_000])
def test_a_full_disk_is_an_artifact_error_and_leaves_no_file(tmp_path, limit):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(ArtifactError, match=r"cannot write .*x\.pth"):
            save_tensors(tmp_path / "x.pth", {"a": torch.ones(10_000), "b": torch.ones(10_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []


def test_safetensors_are_read(tmp_path):
    save_file({"a": torch.ones(2)}, tmp_path / "x.safetensors")
    assert torch.equal(load_state(tmp_path / "x.safetensors")["a"], torch.ones(2))


class Malicious:
    def __reduce__(self):
        return (print, ("executed",))


def test_a_pickle_is_never_executed(tmp_path, capsys):
    torch.save({"a": Malicious()}, tmp_path / "x.pth")
    (tmp_path / "y.pth").write_bytes(pickle.dumps(Malicious()))
    for name in ("x.pth", "y.pth"):
        with pytest.raises(ArtifactError, match="damaged or not a tensor file"):
            load_state(tmp_path / name)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04 not a zip", bytes(1000)])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_damaged_files_are_an_error_with_the_path(tmp_path, content, suffix):
    path = tmp_path / f"x{suffix}"
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=rf"x\{suffix}"):
        load_state(path)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.eye(3).to_sparse(),
        torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
        torch.ones(3, dtype=torch.complex64),
        torch.ones(3, device="meta"),
        torch.ones(1).expand(1000),
    ],
    ids=["sparse", "quantized", "complex", "meta", "expanded"],
)
def test_an_unusual_tensor_is_rejected(tmp_path, tensor):
    for value, load in ((tensor, load_tensor), ({"a": tensor}, load_state)):
        torch.save(value, tmp_path / "x.pth")
        with pytest.raises(ArtifactError, match=r"x\.pth.*it contains a tensor"):
            load(tmp_path / "x.pth")


def test_nested_containers_are_visited_once(tmp_path):
    nested = [torch.ones(1)]
    for _ in range(28):
        nested = [nested, nested]
    torch.save({"a": nested}, tmp_path / "doubled.pth")
    assert list(load_checkpoint(tmp_path / "doubled.pth")) == ["a"]
    with pytest.raises(ArtifactError):
        load_state(tmp_path / "doubled.pth")
    deep = torch.ones(1)
    for _ in range(200):
        deep = {"a": deep}
    torch.save(deep, tmp_path / "deep.pth")
    with pytest.raises(ArtifactError):
        load_checkpoint(tmp_path / "deep.pth")
    shared = (0.9, 0.999)
    torch.save({"groups": [{"betas": shared}, {"betas": shared}]}, tmp_path / "shared.pth")
    assert load_checkpoint(tmp_path / "shared.pth")["groups"][1]["betas"] == shared


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_pipe_is_not_read(tmp_path, suffix):
    os.mkfifo(tmp_path / f"x{suffix}")
    with pytest.raises(ArtifactError, match="not a regular file"):
        load_state(tmp_path / f"x{suffix}")


def test_a_compressed_file_is_rejected(tmp_path):
    torch.save(torch.zeros(100_000), tmp_path / "x.pth")
    with zipfile.ZipFile(tmp_path / "x.pth") as plain, zipfile.ZipFile(tmp_path / "y.pth", "w") as compressed:
        for entry in plain.infolist():
            compressed.writestr(entry.filename, plain.read(entry), compress_type=zipfile.ZIP_DEFLATED)
    assert (tmp_path / "y.pth").stat().st_size < 10_000
    with pytest.raises(ArtifactError, match="it is compressed"):
        load_tensor(tmp_path / "y.pth")


def test_a_tensor_is_not_a_state_and_a_state_is_not_a_tensor(tmp_path):
    save_tensors(tmp_path / "t.pt", torch.ones(2))
    save_tensors(tmp_path / "s.pt", {"a": torch.ones(2)})
    with pytest.raises(ArtifactError, match="state dict"):
        load_state(tmp_path / "t.pt")
    with pytest.raises(ArtifactError, match="one tensor"):
        load_tensor(tmp_path / "s.pt")


def test_a_checkpoint_contains_plain_values_and_tensors(tmp_path):
    torch.save({"epoch": 3, "state": {"a": torch.ones(2)}}, tmp_path / "x.ckpt")
    checkpoint = load_checkpoint(tmp_path / "x.ckpt")
    assert checkpoint["epoch"] == 3
    assert torch.equal(checkpoint["state"]["a"], torch.ones(2))
    with pytest.raises(ArtifactError, match="state dict"):
        load_state(tmp_path / "x.ckpt")
    save_tensors(tmp_path / "t.pt", torch.ones(2))
    with pytest.raises(ArtifactError, match="must contain a checkpoint, not a Tensor"):
        load_checkpoint(tmp_path / "t.pt")


def test_a_missing_file_is_an_error_with_the_path(tmp_path):
    for name in ("x.pth", "x.safetensors"):
        with pytest.raises(ArtifactError, match=rf"cannot read .*{name}"):
            load_state(tmp_path / name)


def test_other_errors_pass_unchanged_and_leave_no_file(tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError("this tensor has no storage")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(RuntimeError, match="has no storage"):
        save_tensors(tmp_path / "x.pth", torch.ones(2))
    assert list(tmp_path.iterdir()) == []


def test_the_first_five_keys_are_listed():
    with pytest.raises(ArtifactError, match="missing k0, k1, k2, k3, k4 and 2 more\n"):
        check_keys([f"k{i}" for i in range(7)], [], source="w.pth")


def test_matching_weights_are_loaded(tmp_path):
    module, other = torch.nn.Linear(2, 3), torch.nn.Linear(2, 3)
    load_into(module, other.state_dict(), source="w.pth")
    assert all(torch.equal(v, other.state_dict()[k]) for k, v in module.state_dict().items())


def test_mismatched_keys_are_listed():
    with pytest.raises(ArtifactError, match=r"w\.pth does not fit: missing a; unexpected c, d"):
        check_keys(["a", "b"], ["b", "c", "d"], source="w.pth")


def test_mismatched_shapes_are_listed():
    module = torch.nn.Linear(2, 3)
    state = module.state_dict() | {"weight": torch.ones(3, 4)}
    with pytest.raises(ArtifactError, match=r"weight \(3, 4\), expected \(3, 2\)"):
        load_into(module, state, source="w.pth")
