import io
import pickle
import zipfile

import pytest
import torch
from safetensors.torch import save_file

from models import load_network, make_optimizer, read_weights, save_network
from modules import UNet
from sources import find_scale
from transfers import TRANSFERS, Scale
from utils import UserError

SCALE = Scale(32, 8)
ROW = TRANSFERS["normal", "sobel_edges"]


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.values(), b.values(), strict=True))


@pytest.fixture
def network():
    torch.manual_seed(1)
    return ROW.build(SCALE)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {f"parallel_apply.module.{n}": v for n, v in s.items()},
        lambda s: {f"module.{n}": v for n, v in s.items()},
        lambda s: {"state_dict": s, "optimizer": {"state": {}, "param_groups": []}},
    ],
)
def test_published_forms_load(tmp_path, network, wrap):
    torch.save(wrap(network.state_dict()), tmp_path / "a.pth")
    fresh = ROW.build(SCALE)
    load_network(fresh, tmp_path / "a.pth", SCALE)
    assert same(fresh.state_dict(), network.state_dict())


def test_own_form_records_scale_and_maker(tmp_path, network):
    save_network(tmp_path / "a.pth", torch.nn.DataParallel(network), SCALE, seed=3)
    record = load_network(ROW.build(SCALE), tmp_path / "a.pth", SCALE)
    assert (record["image_size"], record["width"], record["seed"]) == (32, 8, 3)
    assert same(read_weights(tmp_path / "a.pth")[0], network.state_dict())


def test_half_precision_loads_as_float32(tmp_path, network):
    save_network(tmp_path / "a.pth", network, SCALE, half=True)
    fresh = ROW.build(SCALE)
    load_network(fresh, tmp_path / "a.pth")
    for name, value in fresh.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, network.state_dict()[name].half().float())


def test_another_scale_is_refused_with_the_right_flags(tmp_path, network):
    save_network(tmp_path / "a.pth", network, SCALE)
    with pytest.raises(UserError, match="trained at image size 32, width 8.*`image_size` 32 `wid"):
        load_network(ROW.build(Scale(64, 8)), tmp_path / "a.pth", Scale(64, 8))


def test_a_mismatch_names_the_first_entries_of_both(tmp_path, network):
    torch.save(network.state_dict(), tmp_path / "a.pth")
    with pytest.raises(UserError, match=r"down1.conv1.weight \(8, 1, .*down1.conv1.weight \(8, 3,"):
        load_network(UNet(1, 1, 1, 8), tmp_path / "a.pth")


def test_graph_files_load_by_edge(tmp_path, network):
    state = {f"model.parallel_apply.module.{n}": v for n, v in network.state_dict().items()}
    torch.save({str(ROW.edge): state, "('rgb', 'normal')": {}}, tmp_path / "graph.pth")
    fresh = ROW.build(SCALE)
    load_network(fresh, tmp_path / "graph.pth", SCALE, ROW.edge)
    assert same(fresh.state_dict(), network.state_dict())


class Trap:
    def __reduce__(self):
        return (open, ("/tmp/xtc-trap-was-run", "w"))


@pytest.mark.parametrize("content", [b"", b"text", pickle.dumps({"a": Trap()}), pickle.dumps([1])])
def test_what_is_no_checkpoint_is_refused_and_not_run(tmp_path, content):
    (tmp_path / "a.pth").write_bytes(content)
    with pytest.raises(UserError, match="a.pth"):
        read_weights(tmp_path / "a.pth")
    with pytest.raises(FileNotFoundError):
        open("/tmp/xtc-trap-was-run")


def test_truncated_and_foreign_archives_are_refused(tmp_path, network):
    buffer = io.BytesIO()
    torch.save(network.state_dict(), buffer)
    (tmp_path / "cut.pth").write_bytes(buffer.getvalue()[:1000])
    torch.save(torch.zeros(3), tmp_path / "tensor.pth")
    torch.save({"epoch": 3}, tmp_path / "other.pth")
    for name in ("cut", "tensor", "other", "absent"):
        with pytest.raises(UserError, match=f"{name}.pth"):
            read_weights(tmp_path / f"{name}.pth")


def test_scale_of_a_folder(tmp_path, network):
    assert find_scale(tmp_path, TRANSFERS.values()) is None
    save_network(tmp_path / ROW.checkpoint, network, SCALE)
    assert find_scale(tmp_path, TRANSFERS.values()) == SCALE
    torch.save(network.state_dict(), tmp_path / ROW.checkpoint)
    assert find_scale(tmp_path, TRANSFERS.values()) == Scale()


def test_optimizer_is_the_published_one(network):
    group = make_optimizer(network.parameters()).param_groups[0]
    assert (group["lr"], group["weight_decay"], group["amsgrad"]) == (3e-5, 2e-6, True)


# ---- safetensors, hostile files -----------------------------------------------------


def test_safetensors_load_with_their_metadata(tmp_path, network):
    made = {"image_size": "32", "width": "8", "maker": "someone"}
    weights = {f"module.{name}": value.half() for name, value in network.state_dict().items()}
    save_file(weights, tmp_path / "a.safetensors", metadata=made)
    save_file(network.state_dict(), tmp_path / "b.pth")
    record = load_network(ROW.build(SCALE), tmp_path / "a.safetensors", SCALE)
    assert record == {"image_size": 32, "width": 8, "maker": "someone"}
    fresh = ROW.build(SCALE)
    load_network(fresh, tmp_path / "b.pth")
    assert same(fresh.state_dict(), network.state_dict())
    with pytest.raises(UserError, match="trained at image size 32, width 8"):
        load_network(ROW.build(Scale(64, 8)), tmp_path / "a.safetensors", Scale(64, 8))


def test_safetensors_of_another_depth_say_so(tmp_path):
    scale = Scale(64, 8, levels=2)
    made = {"image_size": "64", "width": "8", "levels": "2"}
    save_file(ROW.build(scale).state_dict(), tmp_path / "a.safetensors", metadata=made)
    load_network(ROW.build(scale), tmp_path / "a.safetensors", scale)
    with pytest.raises(UserError, match="`levels` 2"):
        load_network(ROW.build(Scale(64, 8)), tmp_path / "a.safetensors", Scale(64, 8))


@pytest.mark.parametrize("levels", ["2", 9, None, [1]])
def test_a_scale_that_cannot_be_is_refused(tmp_path, network, levels):
    torch.save(
        {"state_dict": network.state_dict(), "image_size": 32, "width": 8, "levels": levels},
        tmp_path / "a.pth",
    )
    with pytest.raises(UserError, match="a.pth records a scale that cannot be"):
        load_network(ROW.build(SCALE), tmp_path / "a.pth", SCALE)


def test_broken_safetensors_are_refused(tmp_path, network):
    path = tmp_path / "a.safetensors"
    save_file(network.state_dict(), path, metadata={"width": "wide"})
    with pytest.raises(UserError, match="a.safetensors"):
        read_weights(path)
    whole = path.read_bytes()
    for content in (whole[:500], whole[:-9], whole[:8] + b"{" * 90, whole[:9]):
        path.write_bytes(content)
        with pytest.raises(UserError, match="a.safetensors"):
            read_weights(path)


def test_weights_that_would_fill_the_memory_are_refused(tmp_path, network):
    torch.save({"a": torch.zeros(1).expand(10**6, 10**6)}, tmp_path / "expanded.pth")
    with pytest.raises(UserError, match="a claims more numbers than the file holds"):
        read_weights(tmp_path / "expanded.pth")
    torch.save({"a": torch.zeros(10**6)}, tmp_path / "plain.pth")
    with (
        zipfile.ZipFile(tmp_path / "plain.pth") as source,
        zipfile.ZipFile(tmp_path / "packed.pth", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for entry in source.infolist():
            packed.writestr(entry.filename, source.read(entry))
    with pytest.raises(UserError, match="packed.pth.* would unpack to 4"):
        read_weights(tmp_path / "packed.pth")


def test_too_little_memory_is_not_a_broken_checkpoint(tmp_path, network, monkeypatch):
    torch.save(network.state_dict(), tmp_path / "a.pth")
    for error in (
        MemoryError(),
        RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory"),
    ):

        def fail(*args, error=error, **kwargs):
            raise error

        monkeypatch.setattr(torch, "load", fail)
        with pytest.raises(UserError, match="not enough memory to read .*a.pth"):
            read_weights(tmp_path / "a.pth")
