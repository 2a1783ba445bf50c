import pytest
import torch
from torch import nn

from task_configs import get_task
from transfers import (
    OWN_TRANSFERS,
    TRANSFERS,
    Scale,
    Transfer,
    any_transfer,
    generic_transfer,
    get_transfer,
    transfer_by_name,
)
from utils import UserError


@pytest.mark.parametrize("row", TRANSFERS.values(), ids=lambda row: row.name)
def test_every_row_carries_its_source_into_its_target(row):
    if row.target == "imagenet":
        pytest.skip("a torchvision network, compared in the golden tests")
    source, target = get_task(row.source), get_task(row.target)
    output = row.build(Scale(32, 8)).eval()(torch.rand(2, source.channels, 32, 32))
    reshade_to_depth = row.edge == ("reshading", "depth_zbuffer")  # three channels, as published
    assert output.shape == (2, 3 if reshade_to_depth else target.channels, 32, 32)
    assert transfer_by_name(row.name) is row


@pytest.mark.parametrize("size, width, depths", [(256, 16, (6, 5, 4, 3)), (128, 8, (5, 4, 3, 2)),
                                                 (64, 8, (4, 3, 2, 1)), (512, 16, (6, 5, 4, 3)),
                                                 (32, 32, (3, 2, 1, 1))])  # fmt: skip
def test_depth_shrinks_with_the_image(size, width, depths):
    assert tuple(Scale(size, width).depth(d) for d in (6, 5, 4, 3)) == depths


def test_levels_choose_the_depth_at_any_size():
    assert Scale(64, 8) == Scale(64, 8, 4)
    shallow = Scale(128, 8, 4)
    assert tuple(shallow.depth(d) for d in (6, 5, 4, 3)) == (4, 3, 2, 1)
    assert shallow.fits(Scale(64, 8)) and not shallow.fits(Scale(128, 8))
    assert str(shallow) == "image size 128, width 8, levels 4"
    assert shallow.with_overrides(width=16) == Scale(128, 16, 4) and shallow.with_overrides(
        64
    ) == Scale(64, 8)
    assert Scale.of({}) == Scale() and Scale.of({"image_size": 64, "width": 8}) == Scale(64, 8)
    with pytest.raises(UserError, match="`levels` is 1 to 6, not 7"):
        Scale(256, 16, 7)


def test_width_scales_every_convolution():
    for row in TRANSFERS.values():
        if row.trainable:
            narrow, wide = row.build(Scale(32, 8)), row.build(Scale(32, 16))
            inner = [m for m in narrow.modules() if isinstance(m, nn.Conv2d)][1:-1]
            outer = [m for m in wide.modules() if isinstance(m, nn.Conv2d)][1:-1]
            for a, b in zip(inner, outer, strict=True):
                assert (2 * a.in_channels, 2 * a.out_channels) == (b.in_channels, b.out_channels)


@pytest.mark.parametrize(
    "size, width, word",
    [(100, 16, "`image_size` 100"), (8, 8, "`image_size`"), (64, 12, "`width`")],
)
def test_scales_that_no_network_has_are_refused(size, width, word):
    with pytest.raises(UserError, match=word):
        Scale(size, width)


def test_unknown_edges_name_the_known(tmp_path):
    with pytest.raises(
        UserError, match="no transfer reshading → rgb.*from reshading there are: de"
    ):
        get_transfer("reshading", "rgb")
    with pytest.raises(UserError, match="no task 'normals'; did you mean normal"):
        get_transfer("rgb", "normals")
    (tmp_path / "normal2rgb.pth").write_bytes(b"")
    (tmp_path / "normal2keypoints2d_new.pth").write_bytes(b"")
    assert get_transfer("normal", "rgb", tmp_path).downsample == 5


def test_a_row_can_name_any_network():
    """Every network is built by the same keywords, and may ignore what says nothing to it."""

    def convolution(in_channels: int, out_channels: int, **scale: int) -> nn.Module:
        assert scale == {"downsample": 2, "width": 8}
        return nn.Conv2d(in_channels, out_channels, 1)

    row = Transfer("rgb", "depth_zbuffer", convolution, downsample=4)
    assert row.build(Scale(64, 8)).weight.shape == (1, 3, 1, 1)
    assert row.trainable and row.checkpoint == "rgb2depth_zbuffer.pth"


def test_rows_beside_the_published_ones():
    """A network target → rgb has the shape of the published fallback, which finds its file."""
    assert not set(OWN_TRANSFERS) & set(TRANSFERS)
    for edge, row in OWN_TRANSFERS.items():
        assert any_transfer(*edge) is transfer_by_name(row.name) is row
        if edge[1] == "rgb":
            assert row == generic_transfer(*edge)
    assert any_transfer("rgb", "normal") is TRANSFERS["rgb", "normal"]
