"""GeoNet's geometry and network: planes, spheres, gradients; its training from the command line."""

import json
import math
import shutil

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from models import read_weights
from modules.geometry import depth_from_normals, focal_length, normals_from_depth, rays
from modules.geonet import DEPTH_UNIT, GeoNet
from utils import ROOT

ANGLE = 65.0


def grid(size: int, angle: float = ANGLE) -> torch.Tensor:
    """The rays of the pixels, by the definition of a pinhole camera: (1, 3, S, S) float64."""
    centres = (torch.arange(size, dtype=torch.float64) + 0.5) / size * 2 - 1
    edge = math.tan(math.radians(angle) / 2)
    x, y = edge * centres.expand(size, size), edge * centres[:, None].expand(size, size)
    return torch.stack([x, y, torch.ones_like(x)])[None]


def plane(normal: list[float], distance: float, size: int = 32, angle: float = ANGLE):
    """The depth and the normals of a plane n · P = −distance: (1, 1, S, S), (1, 3, S, S)."""
    n = F.normalize(torch.tensor(normal, dtype=torch.float64), dim=0)[None, :, None, None]
    depth = -distance / (n * grid(size, angle)).sum(1, keepdim=True)
    assert (depth > 0).all()
    return depth, n.expand(1, 3, size, size)


PLANES = [([0.0, 0.0, -1.0], 3.0), ([0.4, -0.5, -1.0], 2.0), ([-0.6, 0.1, -1.0], 5.0)]


def test_rays_go_through_the_pixels_centres():
    image = torch.zeros(1, 1, 32, 32, dtype=torch.float64)
    assert torch.allclose(rays(image, focal_length(ANGLE, image)), grid(32)[0], atol=1e-14)


@pytest.mark.parametrize("radius", [1, 2, 4])
@pytest.mark.parametrize("normal, distance", PLANES)
def test_least_squares_normals_of_a_plane(normal, distance, radius):
    depth, truth = plane(normal, distance, angle=30)
    assert (normals_from_depth(depth, 30, radius) - truth).abs().max() < 1e-10
    single = normals_from_depth(depth.float(), 30, radius)
    assert (single - truth).abs().max() < 1e-4


def test_least_squares_normals_are_those_of_a_general_solver():
    """On a rough surface with holes and jumps, pixel by pixel, by torch.linalg.lstsq."""
    generator = torch.Generator().manual_seed(0)
    depth = 2 + 0.15 * torch.rand(1, 1, 12, 12, generator=generator, dtype=torch.float64)
    depth[..., 6:] += 1
    valid = torch.rand(1, 1, 12, 12, generator=generator) > 0.2
    ours = normals_from_depth(depth, ANGLE, 2, valid)
    points = depth * grid(12)
    compared = 0
    for v in range(12):
        for u in range(12):
            near = [
                (y, x)
                for y in range(max(0, v - 2), min(12, v + 3))
                for x in range(max(0, u - 2), min(12, u + 3))
                if valid[0, 0, y, x] and abs(depth[0, 0, y, x] / depth[0, 0, v, u] - 1) < 0.05
            ]
            if len(near) < 6:
                continue
            rows = torch.stack([points[0, :, y, x] for y, x in near])
            ones = torch.ones(len(near), 1, dtype=torch.float64)
            n = -F.normalize(torch.linalg.lstsq(rows, ones).solution[:, 0], dim=0)
            assert torch.allclose(ours[0, :, v, u], n, atol=1e-8), (v, u)
            compared += 1
    assert compared > 80


def test_least_squares_normals_of_a_sphere():
    """Within 1e-5 on a fine grid; four times as fine a curve, a sixteenth of the error."""
    errors = []
    for size in (64, 128, 256):
        ray, centre = grid(size, 2.0), torch.tensor([0.02, -0.01, 2.0], dtype=torch.float64)
        c, radius = centre[None, :, None, None], 0.5
        a, b = ray.square().sum(1, keepdim=True), (ray * c).sum(1, keepdim=True)
        depth = (b - (b * b - a * (c.square().sum() - radius**2)).sqrt()) / a
        truth = (depth * ray - c) / radius
        inside = normals_from_depth(depth, 2.0, 1)[..., 1:-1, 1:-1]
        errors.append(float((inside - truth[..., 1:-1, 1:-1]).abs().max()))
    assert errors[-1] < 1e-5
    assert errors[0] / errors[1] > 3.5 and errors[1] / errors[2] > 3.5


def test_points_alone_have_a_normal_that_faces_the_camera():
    """Also no gradient that is not finite comes from there."""
    depth = torch.full((1, 1, 8, 8), 2.0, requires_grad=True)
    valid = torch.zeros(1, 1, 8, 8, dtype=torch.bool)
    valid[..., 3, :] = True  # a line spans no plane
    normals = normals_from_depth(depth, ANGLE, 2, valid)
    assert torch.equal(normals[0, :, 0, 0], torch.tensor([0.0, 0.0, -1.0]))
    assert torch.equal(normals[0, :, 3, 3], torch.tensor([0.0, 0.0, -1.0]))
    normals.sum().backward()
    assert torch.isfinite(depth.grad).all()


@pytest.mark.parametrize("normal, distance", PLANES)
def test_kernel_regression_of_a_plane_is_exact(normal, distance):
    depth, normals = plane(normal, distance, angle=30)
    refined = depth_from_normals(depth, normals, 30, 3)
    assert (refined / depth - 1).abs().max() < 1e-12


def test_kernel_regression_removes_noise_within_a_surface_only():
    depth, normals = plane([0.0, 0.0, -1.0], 3.0)
    generator = torch.Generator().manual_seed(0)
    noise = 0.05 * torch.randn(depth.shape, generator=generator, dtype=torch.float64)
    refined = depth_from_normals(depth + noise, normals, ANGLE, 2)
    # a plane that faces the camera predicts the neighbours' own depths: their mean
    means = F.avg_pool2d(depth + noise, 5, 1)
    assert torch.allclose(refined[..., 2:-2, 2:-2], means, atol=1e-12)
    other = normals.clone()
    other[..., 16:] = torch.tensor([-0.6, 0.0, -0.8])[:, None, None]  # another surface
    apart = depth_from_normals(depth + noise, other, ANGLE, 2)
    assert torch.allclose(apart[..., 2:-2, 2:14], means[..., :12], atol=1e-12)
    beside = F.avg_pool2d((depth + noise)[..., 12:16], (5, 4), 1)  # columns of this surface alone
    assert torch.allclose(apart[..., 2:-2, 14:15], beside, atol=1e-12)


def test_invalid_pixels_take_no_part():
    depth, normals = plane(*PLANES[1])
    holes = depth.clone()
    holes[..., 10:14, 10:14] = 15.6
    valid = torch.ones_like(depth, dtype=torch.bool)
    valid[..., 10:14, 10:14] = False
    around = torch.ones_like(valid)
    around[..., 10:14, 10:14] = False
    refined = depth_from_normals(holes, normals, ANGLE, 2, valid)
    assert torch.allclose(refined[around], depth[around], rtol=1e-12)


@pytest.mark.parametrize("radius", [1, 2])
def test_gradients_by_finite_differences(radius):
    generator = torch.Generator().manual_seed(1)
    depth, normals = plane(*PLANES[1], size=6)
    depth = depth + 0.002 * torch.rand(depth.shape, generator=generator, dtype=torch.float64)
    noise = torch.rand(normals.shape, generator=generator, dtype=torch.float64)
    normals = F.normalize(normals + 0.02 * noise, dim=1)
    depth.requires_grad_()
    normals.requires_grad_()
    assert torch.autograd.gradcheck(lambda d: normals_from_depth(d, ANGLE, radius), depth)
    assert torch.autograd.gradcheck(
        lambda d, n: depth_from_normals(d, n, ANGLE, radius), (depth, normals)
    )


class Known(nn.Module):
    """A network whose output is known, whatever the image."""

    def __init__(self, output: torch.Tensor) -> None:
        super().__init__()
        self.output = nn.Parameter(output)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.output.expand(len(x), -1, -1, -1)


def test_the_network_begins_as_its_two_networks_and_refines_one_by_the_other():
    depth, normals = (values.float() for values in plane(*PLANES[1]))
    networks = Known((normals + 1) / 2), Known(depth / DEPTH_UNIT)
    net = GeoNet(*networks, target="normal", field_of_view=ANGLE)
    image = torch.rand(2, 3, 32, 32)
    first, refined = net.predictions(image)["normal"]
    assert torch.equal(first, refined) and torch.equal(net(image), refined)
    wrong = GeoNet(Known(torch.full((1, 3, 32, 32), 0.3)), networks[1], "normal", ANGLE)
    with torch.no_grad():  # what geometry computes, alone
        wrong.refine_normal.join.weight.copy_(wrong.refine_normal.join.weight.roll(3, 1))
        wrong.refine_normal.residual[-1].weight.zero_()
        wrong.refine_normal.residual[-1].bias.zero_()
    assert torch.allclose(wrong(image), ((normals + 1) / 2).expand(2, -1, -1, -1), atol=1e-4)
    (wrong(image).sum()).backward()
    assert networks[1].output.grad.abs().sum() > 0  # the normals' loss trains the depth


def run_folder(results):
    (folder,) = results.iterdir()
    return folder


QUICK = ("--steps-per-epoch=2", "--perceptual=curv", "--no-imagenet", "--visdom-server=none")


@pytest.mark.parametrize(
    "task, other",
    [
        pytest.param("normal", "depth_zbuffer", marks=pytest.mark.slow),
        pytest.param("depth", "normal", marks=pytest.mark.slow),
    ],
)
def test_two_steps_by_the_command_line(run, task, other):
    """The shipped baselines are its start; table and demo show what it has learned."""
    status, output, results = run(f"geonet_{task}", *QUICK)
    assert status == 0, output
    folder = run_folder(results)
    target = {"normal": "normal", "depth": "depth_zbuffer"}[task]
    weights, record = read_weights(folder / f"rgb2{target}_geonet.pth")
    assert record["method"] == "geonet" and float(weights["field_of_view"]) == ANGLE
    columns = json.loads((folder / "evaluation.json").read_text())
    rows = {"direct L1 × 100", f"direct L1 × 100, {other}"}
    assert rows <= set(columns["before"]) == set(columns["trained"])
    assert ("angular error (°), normal" in columns["before"]) == (other == "normal")
    record = json.loads((folder / "run.json").read_text())
    assert record["field_of_view"] == ANGLE and {"rgb2normal", "rgb2depth_zbuffer"} <= set(
        record["inputs"]["networks"]
    )
    assert "field of view 65°" in output
    named = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    (losses,) = [line for line in named if line.get("split") == "train"]
    own = {f"{name} : training" for name in (other, f"first {other}", f"first {target}")}
    assert {"loss", *own} <= set(losses)
    shown = f"--task={task}", f"--checkpoint={folder}", f"--img-path={ROOT / 'assets/room.png'}"
    status, output, _ = run(*shown, f"--output-dir={results / 'shown'}", program="demo",
                            defaults=False)  # fmt: skip
    assert status == 0, output


def test_it_begins_with_the_errors_of_the_baselines(run):
    columns = []
    for name in ("baseline_normal", "geonet_normal"):
        status, output, results = run(name, *QUICK, "--visualize")
        assert status == 0, output
        folder = max(results.iterdir(), key=lambda path: path.stat().st_mtime_ns)
        columns.append(json.loads((folder / "evaluation.json").read_text())["before"])
    for row, value in columns[0].items():
        assert columns[1][row] == pytest.approx(value, rel=1e-6), row


def test_the_field_of_view_is_asked_for_where_the_data_do_not_tell(run, tmp_path, rooms):
    others = tmp_path / "others"
    shutil.copytree(rooms, others)
    (others / "rooms.json").unlink()
    arguments = "geonet_normal", *QUICK, f"--data-dirs={others}"
    status, output, _ = run(*arguments)
    assert status == 2 and "give --field-of-view, the degrees" in output
    status, output, results = run(*arguments, "--field-of-view=90", "--visualize")
    assert status == 0 and "field of view 90°" in output, output
    (record,) = results.glob("*/run.json")
    assert json.loads(record.read_text())["field_of_view"] == 90
    status, output, _ = run(*arguments, "--field-of-view=9")
    assert status == 2 and "from 10 to 150 degrees, not 9" in output
    status, output, _ = run("baseline_normal", *QUICK, "--field-of-view=90")
    assert status == 2 and "--field-of-view is for geonet" in output
