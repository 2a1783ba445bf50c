"""Networks of a user's own: they train, resume, are shown, and no record runs their code."""

import json
import shlex
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

import demo
from backbones import backbone
from graph import TaskGraph
from models import load_network, read_weights, save_network
from sources import find_scale
from transfers import TRANSFERS, Scale
from utils import ROOT, UserError

SCALE = Scale(32, 8)
EDGE = TRANSFERS["rgb", "normal"]
# Batch normalisation, dropout, a frozen layer, a name that begins like a wrapper's prefix. Each
# time that it is run, the file leaves a line.
OWN = """
from pathlib import Path
import torch
from torch import nn

with open(Path(__file__).with_suffix(".ran"), "a") as file:
    file.write("ran\\n")

class Own(nn.Module):
    def __init__(self, out_channels):
        super().__init__()
        self.model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
                                   nn.Dropout(0.5), nn.Conv2d(8, out_channels, 1))
        self.fixed = nn.Conv2d(3, 3, 1).requires_grad_(False)

    def forward(self, x):
        return self.model(self.fixed(x)).sigmoid()

def build(out_channels, image_size, pretrained):
    Path(__file__).with_suffix(".pretrained").write_text(str(pretrained))
    return Own(out_channels)

def other(out_channels):
    return Own(out_channels).requires_grad_(True)
"""


@pytest.fixture
def own(tmp_path) -> Path:
    file = tmp_path / "own.py"
    file.write_text(OWN)
    return file


def times_run(file: Path) -> int:
    ran = file.with_suffix(".ran")
    return len(ran.read_text().splitlines()) if ran.exists() else 0


def the_run(results: Path) -> Path:
    return max(results.iterdir(), key=lambda folder: folder.stat().st_mtime)


def checkpoint_of(results: Path) -> Path:
    (file,) = [f for f in the_run(results).glob("*.pth") if not f.stem.endswith("_best")]
    return file


def shown(run, tmp_path, *arguments) -> tuple[int, str]:
    image, out = ROOT / "assets" / "room.png", tmp_path / "shown"
    status, output, _ = run(
        "--task=normal", f"--img_path={image}", f"--output_path={out}", "--quiet", *arguments,
        program="demo", defaults=False,
    )  # fmt: skip
    return status, output


QUICK = ("rgb2normal", "--steps-per-epoch=1", "--quiet")
JOB = ("example_normal", "--k=1", "--no-imagenet", "--steps-per-epoch=2", "--quiet")


# ---- the way from training to the demo ------------------------------------------------


def test_a_network_of_torchvision_trains_and_is_shown(run, tmp_path):
    network = f"--network={ROOT}/examples/torchvision_backbone.py:build"
    status, output, results = run(*JOB, network)
    assert status == 0, output
    assert "direct L1" in output and "torchvision_backbone.py:build" in output
    (said,) = [line for line in output.splitlines() if "demo.py --task normal" in line]
    words = shlex.split(said)
    assert words[words.index("--checkpoint") + 1] == str(the_run(results))
    assert words[words.index("--network") + 1] == network.partition("=")[2]
    status, output = shown(run, tmp_path, f"--checkpoint={the_run(results)}", network, "--size=40")
    assert status == 0, output
    status, output = shown(run, tmp_path, f"--checkpoint={the_run(results)}")
    assert status == 2 and output.count("error: ") == 1
    assert network.partition("=")[2] in output


def test_a_dpt_of_hugging_face_trains_and_is_shown(run, tmp_path):
    """At the size of its training, and a whole image that is wider than high."""
    pytest.importorskip("transformers")
    network = f"--network={ROOT}/examples/dpt_backbone.py:build"
    status, output, results = run(*JOB, network)
    assert status == 0, output
    place = f"--checkpoint={the_run(results)}"
    status, output = shown(run, tmp_path, place, network)
    assert status == 0, output
    wide = tmp_path / "wide.png"
    Image.new("RGB", (150, 100), "grey").save(wide)
    status, output, _ = run(
        "--task=normal", f"--img_path={wide}", f"--output_path={tmp_path / 'shown'}", place,
        network, "--size=64", "--quiet", program="demo", defaults=False,
    )  # fmt: skip
    assert status == 0, output
    (file,) = (tmp_path / "shown").glob("wide_normal_*.png")
    assert Image.open(file).size == (96, 64)


def test_any_transfer_and_its_checkpoint_as_start(run, own):
    network = f"--network={own}:build"
    status, output, results = run("rgb2depth_zbuffer", "--steps-per-epoch=1", network)
    assert status == 0, output
    start = checkpoint_of(results)
    assert read_weights(start)[1]["network_sha256"]
    assert own.with_suffix(".pretrained").read_text() == "True"
    status, output, _ = run(
        "example_normal", "--k=0", "--steps-per-epoch=1", network, f"--init={start}"
    )
    assert status == 2 and "does not fit Own" in output
    status, output, _ = run("rgb2depth_zbuffer", "--visualize", network, f"--init={start}")
    assert status == 0 and f"from {start}" in output
    assert own.with_suffix(".pretrained").read_text() == "False"
    status, output, _ = run(
        "rgb2depth_zbuffer", "--visualize", f"--network={own}:other", f"--init={start}"
    )
    assert status == 0 and f"is not the network that {start} was trained with" in output


def test_predictions_are_those_of_the_network(run, own, tmp_path):
    _, _, results = run(*QUICK, f"--network={own}:build")
    row = backbone(f"{own}:build", EDGE)
    network = row.build(SCALE)
    load_network(network, checkpoint_of(results), transfer=row)
    image = torch.arange(3 * 32 * 32).reshape(3, 32, 32) % 256 / 255
    got = demo.predict(image, checkpoint=checkpoint_of(results), network=f"{own}:build", size=32)
    expected = network.eval()(image[None])[0].detach()
    assert torch.allclose(got, expected, atol=1e-6)


# ---- modes, frozen parameters, randomness --------------------------------------------


def test_modes_and_frozen_parameters_are_respected(run, own):
    status, output, results = run(*JOB, f"--network={own}:build", "--lr=1e-2", "--compare-direct")
    assert status == 0, output
    weights, record = read_weights(checkpoint_of(results))
    in_run = json.loads((the_run(results) / "run.json").read_text())
    for name in ("network_file", "network_function", "network_sha256"):
        assert record[name] == in_run[name]
    assert (record["network_file"], record["network_function"]) == (str(own), "build")
    assert weights["model.1.num_batches_tracked"] == 2  # the two steps; no trial, no validation
    torch.manual_seed(0)
    fresh = backbone(f"{own}:build", EDGE).build(SCALE).state_dict()
    changed = {name for name, value in weights.items() if not torch.equal(value, fresh[name])}
    assert {name.split(".")[0] for name in changed} == {"model"}
    assert "model.4.weight" in changed


def test_a_graph_unfreezes_what_is_frozen_as_a_whole():
    frozen = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)).requires_grad_(False)
    graph = TaskGraph({("rgb", "normal"): frozen}, ("rgb", "normal"))
    assert len(graph.trained_parameters) == 4
    frozen[0].requires_grad_(False)
    graph = TaskGraph({("rgb", "normal"): frozen}, ("rgb", "normal"))
    assert graph.trained_parameters == list(frozen[1].parameters())


# ---- safety: only what the user names is run --------------------------------------------


def test_no_record_runs_code(run, own, tmp_path):
    status, output, results = run(*QUICK, f"--network={own}:build")
    folder, before = the_run(results), times_run(own)
    assert before == 1
    tries = {
        "resume": lambda: run("--resume", str(folder), defaults=False),
        "demo": lambda: shown(run, tmp_path, f"--checkpoint={folder}"),
        "init": lambda: run(*QUICK, f"--init={checkpoint_of(results)}"),
    }
    for name, attempt in tries.items():
        status, output, *_ = attempt()
        assert status == 2 and output.count("error: ") == 1, (name, output)
        assert f"--network {own}:build" in output, name
    assert times_run(own) == before


def test_a_file_that_has_changed_is_noticed(run, own, tmp_path):
    network = f"--network={own}:build"
    _, _, results = run(*QUICK, network)
    folder = the_run(results)
    own.write_text(OWN.replace(".sigmoid()", ".relu()"))
    status, output, _ = run("--resume", str(folder), network, defaults=False)
    assert (
        status == 2
        and "--resume-anyway" in output
        and "--network names another file or function" in output
    )
    status, output = shown(run, tmp_path, f"--checkpoint={folder}", network)
    assert status == 0 and "is not the network that" in output


def test_a_run_without_goes_on_without(run, own):
    _, _, results = run(*QUICK, "--visualize")
    status, output, _ = run("--resume", str(the_run(results)), f"--network={own}:build",
                            defaults=False)  # fmt: skip
    assert status == 2 and "was begun with none" in output
    assert not times_run(own)


def test_an_unneeded_network_is_refused(run, own, networks, tmp_path):
    status, output = shown(run, tmp_path, f"--models-dir={networks}", f"--network={own}:build")
    assert status == 2 and "holds no network that was trained with --network" in output


# ---- in a models folder ------------------------------------------------------------------


def test_installed_it_is_found_and_sets_no_scale(run, own, networks, tmp_path):
    folder = tmp_path / "models"
    folder.mkdir()
    for file in networks.iterdir():
        (folder / file.name).symlink_to(file)
    network = f"--network={own}:build"
    job = ("example_normal", "--k=0", "--steps-per-epoch=1")
    status, output, _ = run(*job, network, "--install", f"--models-dir={folder}")
    assert status == 0, output
    # beside the table's baseline
    status, output = shown(run, tmp_path, f"--models-dir={folder}", network)
    assert status == 0 and "consistency" in output, output
    status, output, _ = run(
        "energy_calc", f"--data-dirs={run.rooms}", "--subset_size=1",
        f"--models-dir={folder}", f"--save_dir={tmp_path / 'energy'}",
        program="scripts.energy_calc", defaults=False,
    )  # fmt: skip
    assert status == 2 and "holds the network that" in output
    alone = tmp_path / "alone"
    alone.mkdir()
    (alone / EDGE.checkpoint).symlink_to(folder / "rgb2normal_consistency.pth")
    assert find_scale(alone, TRANSFERS.values()) is None


def test_a_plain_state_dict_keeps_the_names_of_the_network(own, tmp_path):
    row = backbone(f"{own}:build", EDGE)
    trained, other = row.build(SCALE), row.build(SCALE)
    torch.save(trained.state_dict(), tmp_path / "plain.pth")
    load_network(other, tmp_path / "plain.pth", SCALE, transfer=row)
    # one trained beside wider networks: width and levels are not its own
    save_network(tmp_path / "wide.pth", trained, Scale(64, 16), **row.record())
    load_network(other, tmp_path / "wide.pth", SCALE, transfer=row)
    for name, value in trained.state_dict().items():
        assert torch.equal(value, other.state_dict()[name])


def test_a_record_that_was_edited_is_one_sentence(run, own, tmp_path):
    row = backbone(f"{own}:build", EDGE)
    file = tmp_path / "rgb2normal.pth"
    for name in (3, "x\n\x1b[2Jerror: ", "x" * 5000, "a; rm -r b"):
        save_network(file, row.build(SCALE), SCALE, network_file=name, network_sha256=None)
        status, output = shown(run, tmp_path, f"--checkpoint={file}")
        assert status == 2 and len(output.splitlines()) == 1 and len(output) < 1000
        assert "\x1b" not in output and "--network a; " not in output


# ---- what is refused ------------------------------------------------------------------

HEAD = "from torch import nn\nimport torch\n"
WRONG = {
    "x = (": (":build", "line 3: SyntaxError"),
    "import no_such_package": (":build", "line 3: ModuleNotFoundError: No module named"),
    "raise SystemExit(3)": (":build", "line 3: SystemExit: 3"),
    "build = 3": (":build", "has no function build"),
    "pass": (":build", "has no function build"),
    "": ("", "is FILE.py:FUNCTION"),
    "def build(depth): pass": (":build", "needs an argument depth"),
    "def build(): return 1 / 0": (":build", "line 3: ZeroDivisionError: division by zero"),
    "def build(): return 3": (":build", "has to return a torch.nn.Module, not a int"),
    "def build(): return nn.Conv2d(3, 5, 1)": (":build", "gives 5 channels for normal"),
    "def build(): return nn.Conv2d(3, 3, 1, stride=2)": (":build", "(2, C, 32, 32), not to (2, 3,"),
    "def build(): return nn.Conv2d(4, 3, 1)": (":build", "fails on images of shape (2, 3, 32, 32)"),
    "def build(): return nn.LSTM(32, 32)": (":build", "fails on images of shape"),
    "def build(): return nn.Identity()": (":build", "has no parameters that train"),
    "def build(): return nn.Conv2d(3, 3, 1).requires_grad_(False)": (
        ":build", "has no parameters that train"),
    "class build(nn.Conv2d):\n  def __init__(s): super().__init__(3, 3, 1)\n"
    "  def forward(s, x): return {'out': x}": (":build", "a tensor of floats"),
    "class build(nn.Conv2d):\n  def __init__(s): super().__init__(3, 3, 1)\n"
    "  def forward(s, x): return [x] if s.training else x": (":build", "a tensor of floats"),
    "class build(nn.Conv2d):\n  def __init__(s): super().__init__(3, 3, 1)\n"
    "  def get_extra_state(s): return 3": (":build", "_extra_state in its state dict is a int"),
}  # fmt: skip


@pytest.mark.parametrize("code", WRONG)
def test_what_does_not_fit_is_one_sentence(run, tmp_path, code):
    suffix, sentence = WRONG[code]
    file = tmp_path / "wrong.py"
    file.write_text(HEAD + code)
    status, output, results = run("example_normal", "--k=0", f"--network={file}{suffix}")
    errors = [line for line in output.splitlines() if line.startswith("error: ")]
    assert status == 2 and len(errors) == 1, output
    assert "--network" in errors[0] and sentence in errors[0]
    assert "wrong.py" in errors[0]
    assert not results.exists()


def test_a_file_that_is_not_there(run):
    status, output, _ = run("example_normal", "--network=nowhere.py:build")
    assert status == 2 and "cannot read nowhere.py: No such file" in output


def test_sizes_that_it_does_not_take(run, own, tmp_path):
    own.write_text(OWN.replace("return self.model", "assert x.shape[3] == 32\n        return "
                               "self.model"))  # fmt: skip
    network = f"--network={own}:build"
    _, _, results = run(*QUICK, network)
    status, output = shown(run, tmp_path, f"--checkpoint={the_run(results)}", network, "--size=64")
    assert status == 2 and "fails on images of shape" in output and "AssertionError" in output


def test_only_the_run_code_counts(own):
    """The digest is that of the code that ran, and a file's neighbours can be imported."""
    (own.parent / "neighbour.py").write_text("CHANNELS = 3")
    own.write_text("import neighbour\nfrom torch import nn\n"
                   "build = lambda **k: nn.Conv2d(3, neighbour.CHANNELS, 1)")  # fmt: skip
    first = backbone(f"{own}:build", EDGE)
    assert first.build(SCALE).out_channels == 3
    own.write_text(own.read_text().replace("1)", "3)"))
    second = backbone(f"{own}:build", EDGE)
    assert first.sha256 != second.sha256
    with pytest.raises(UserError, match="not to"):
        second.build(SCALE)
