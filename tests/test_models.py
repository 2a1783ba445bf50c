import io
import pickle
import zipfile

import pytest
import torch
from safetensors.torch import save_file

from models import (
    load_network,
    make_optimizer,
    read_weights,
    recorded_scale,
    save_network,
)
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


WRONG_NUMBERS = ["8", [8], None, True, 8.0, float("nan"), -8, 9, 80000, 10**400,
                 torch.zeros(3, 3), torch.zeros(2, device="meta")]  # fmt: skip


@pytest.mark.parametrize("key", ["image_size", "width", "levels"])
@pytest.mark.parametrize("value", WRONG_NUMBERS, ids=lambda value: f"{type(value).__name__}")
def test_a_scale_that_cannot_be_is_refused(tmp_path, network, key, value):
    record = {**SCALE.record(), key: value}
    path = tmp_path / ROW.checkpoint
    torch.save({"state_dict": network.state_dict(), **record}, path)
    for read in (
        lambda: load_network(ROW.build(SCALE), path, SCALE),
        lambda: find_scale(tmp_path, [ROW]),
    ):
        with pytest.raises(UserError, match=f"{path.name} records an impossible scale") as said:
            read()
        assert len(str(said.value).splitlines()) == 1 and len(str(said.value)) < 400


@pytest.mark.parametrize("metadata", [{"width": "wide"}, {"width": "8.0"}, {"width": "9" * 5000}])
def test_a_scale_in_safetensors_that_cannot_be_is_refused(tmp_path, network, metadata):
    path = tmp_path / "a.safetensors"
    save_file(network.state_dict(), path, metadata=metadata)
    with pytest.raises(UserError, match="a.safetensors records an impossible scale.*`width`"):
        load_network(ROW.build(SCALE), path, SCALE)


@pytest.mark.parametrize("scale", [Scale(64, 1024, 6), Scale(32, 16)])
def test_a_scale_is_compared_with_the_weights_before_a_network_is_built(tmp_path, network, scale):
    path = tmp_path / ROW.checkpoint
    torch.save({"state_dict": network.state_dict(), **scale.record()}, path)
    with pytest.raises(UserError, match=f"{path.name} does not fit UNet.* at {scale}: the network"):
        find_scale(tmp_path, [ROW])


def test_what_is_no_plain_tensor_is_refused(tmp_path, network):
    path = tmp_path / ROW.checkpoint
    for kind in ("meta", torch.complex64):
        weights = {name: value.to(kind) for name, value in network.state_dict().items()}
        torch.save({"state_dict": weights, **SCALE.record()}, path)
        with pytest.raises(UserError, match="down1.conv1.weight is not a tensor of real numbers"):
            load_network(ROW.build(SCALE), path, SCALE)
    weights = network.state_dict()
    torch.save(weights | {"module.down1.conv1.weight": torch.zeros(3)}, path)
    with pytest.raises(UserError, match="names that differ only in a wrapper's prefix"):
        read_weights(path)


# ---- damaged weights ----------------------------------------------------------------


def flipped(path, tensor):
    """Flip one bit of a tensor's values in a checkpoint file."""
    content = bytearray(path.read_bytes())
    content[content.index(tensor.numpy().tobytes()) + 1] ^= 0x40
    path.write_bytes(content)


def test_one_flipped_bit_is_noticed(tmp_path, network):
    weight = network.state_dict()["down1.conv1.weight"]
    save_network(tmp_path / "a.pth", network, SCALE)
    read_weights(tmp_path / "a.pth")
    flipped(tmp_path / "a.pth", weight)
    with pytest.raises(UserError, match="a.pth is damaged: the checksum of data/0 in it is wrong"):
        load_network(ROW.build(SCALE), tmp_path / "a.pth", SCALE)
    # its scale is read without the weights, but not without a checksum
    record = bytearray((tmp_path / "a.pth").read_bytes())
    record[record.index(b"image_size")] ^= 1
    (tmp_path / "a.pth").write_bytes(record)
    with pytest.raises(UserError, match="the checksum of data.pkl in it is wrong"):
        recorded_scale(tmp_path / "a.pth")


@pytest.mark.parametrize("half", [False, True], ids=["float32", "float16"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_refused_by_name(tmp_path, network, value, half):
    network.state_dict()["last_conv2.bias"][-1] = value
    save_network(tmp_path / "a.pth", network, SCALE, half=half)
    with pytest.raises(UserError, match="a.pth: last_conv2.bias holds values that are not finite"):
        load_network(ROW.build(SCALE), tmp_path / "a.pth", SCALE)


def test_checkpoints_without_checksums_load(tmp_path, network):
    """Those of torch's old format, and those saved with the checksums turned off."""
    torch.save(network.state_dict(), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(network.state_dict(), tmp_path / "off.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    for name in ("old.pth", "off.pth"):
        assert same(read_weights(tmp_path / name)[0], network.state_dict())
        assert recorded_scale(tmp_path / name, ROW.build) == Scale()


# ---- broken files -------------------------------------------------------------------


def test_broken_safetensors_are_refused(tmp_path, network):
    path = tmp_path / "a.safetensors"
    save_file(network.state_dict(), path)
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
