"""Global consistency: paths, violations, choices, rounds; its training from the command line."""

import json
import random
import signal
import warnings

import pytest
import torch
from PIL import Image
from small_runs import assert_the_same, last_state, log_of
from torch import nn

from datasets import Batch
from graph import TaskGraph
from methods.optimising import Optimised
from methods.paths import beginning_with, mean_violations, paths_of_length, violation_of_edges
from methods.rounds import Schedule, choose
from models import read_weights
from training.loop import Trainer
from transfers import transfer_by_name

N, D, R = "normal", "depth_zbuffer", "reshading"


def test_paths_visit_no_domain_twice_and_never_lead_to_the_image():
    assert len(paths_of_length(1)) == 9
    assert len(paths_of_length(2)) == 12
    assert len(paths_of_length(3)) == 6
    assert beginning_with((N, D), 2) == [(N, D, R)]
    assert beginning_with((N, D), 3) == []
    assert beginning_with(("rgb", D), 3) == [("rgb", D, N, R), ("rgb", D, R, N)]


class Scale(nn.Module):
    """Multiplies by a number, and gives as many channels as asked for."""

    def __init__(self, factor: float, channels: int) -> None:
        super().__init__()
        self.factor, self.channels = nn.Parameter(torch.tensor(factor)), channels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.factor * x.mean(1, keepdim=True)).expand(-1, self.channels, -1, -1)


CHANNELS = {N: 3, D: 1, R: 3}
FACTORS = {edge: 0.5 + 0.1 * i for i, edge in enumerate(paths_of_length(1))}


def scaled_graph() -> TaskGraph:
    return TaskGraph({edge: Scale(f, CHANNELS[edge[1]]) for edge, f in FACTORS.items()})


def batch_of(values: dict[str, float], size: int = 8) -> Batch:
    channels = {"rgb": 3, **CHANNELS}
    return Batch({n: torch.full((1, channels[n], size, size), v) for n, v in values.items()})


def test_violations_by_their_definition():
    """Two views, of which the second's depth is invalid in one half of the image."""
    first = {"rgb": 0.8, N: 0.6, D: 0.3, R: 0.9}
    second = {"rgb": 0.2, N: 0.7, D: 0.4, R: 0.1}
    batches = [batch_of(first), batch_of(second)]
    batches[1][D][..., 4:] = 1.0  # holes; two more pixels are next to them
    paths = [path for length in (1, 2, 3) for path in paths_of_length(length)]
    found = mean_violations(scaled_graph(), paths, batches, torch.device("cpu"))
    f = FACTORS

    def violation(values, path):
        mapped, truth = values[path[0]], values[path[1]]
        for edge in zip(path, path[1:], strict=False):
            mapped *= f[edge]
        for edge in zip(path[1:], path[2:], strict=False):
            truth *= f[edge]
        return abs(mapped - truth)

    for path in [("rgb", N), ("rgb", D), (R, N), ("rgb", N, R), ("rgb", N, R, D), (R, N, D)]:
        expected = (violation(first, path) + violation(second, path)) / 2
        assert found[path] == pytest.approx(expected, rel=1e-5), path
    rest = f[D, N] * torch.tensor([0.4, 1.0])  # f(y) of the second view: no hole is marked in it
    mapped = f["rgb", D] * f[D, N] * 0.2
    expected = (violation(first, ("rgb", D, N)) + float((mapped - rest).abs().mean())) / 2
    assert found["rgb", D, N] == pytest.approx(expected, rel=1e-5)
    assert violation_of_edges(found)[N, D] == found[N, D, R]


def test_the_largest_violation_is_that_of_the_network_then_of_the_path():
    violations = {("rgb", N, D): 0.3, ("rgb", N, R): 0.3, ("rgb", D, N): 0.5, ("rgb", D, R): 0.0,
                  (N, R, D): 0.2}  # fmt: skip
    generator = random.Random(0)
    largest = choose(violations, "largest", "largest", 0, generator)
    assert largest.edge == ("rgb", N) and largest.violation == 0.3
    in_turn = [choose(violations, "round-robin", "largest", i, generator) for i in range(4)]
    assert [choice.path for choice in in_turn] == [
        ("rgb", N, D), ("rgb", D, N), (N, R, D), ("rgb", N, D),
    ]  # fmt: skip
    chance = {choose(violations, "random", "random", 0, generator).path for _ in range(200)}
    assert chance == set(violations)
    again = random.Random(1), random.Random(1)
    assert [choose(violations, "random", "random", 0, again[0]) for _ in range(9)] == [
        choose(violations, "random", "random", 0, again[1]) for _ in range(9)
    ]


def test_the_schedule_divides_the_steps_among_the_lengths():
    schedule = Schedule(steps=14, direct_steps=4, round_steps=2, longest=3)
    assert [schedule.length(step) for step in range(14)] == [1] * 4 + [2] * 5 + [3] * 5
    assert [s for s in range(14) if schedule.begins_round(s)] == [4, 6, 8, 9, 11, 13]
    shorter = Schedule(steps=4, direct_steps=0, round_steps=3, longest=2)
    assert [shorter.length(step) for step in range(4)] == [2] * 4
    assert [s for s in range(4) if shorter.begins_round(s)] == [0, 3]


def test_the_rate_falls_without_a_warning_for_networks_not_updated_yet():
    optimised = Optimised([nn.Parameter(torch.ones(1))], lr=1.0, steps=2, betas=None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimised.decay()
    assert optimised.optimizer.param_groups[0]["lr"] == pytest.approx(0.5)


# ---- the command line ---------------------------------------------------------------

QUICK = ("--perceptual=curv", "--no-imagenet", "--visdom-server=none")
ROUNDS = (*QUICK, "--steps-per-epoch=5", "--round-steps=2")
OTHERS = ["2".join(edge) for edge in paths_of_length(1) if edge != ("rgb", N)]


def run_folder(results):
    (folder,) = results.iterdir()
    return folder


def rounds_of(folder) -> list[dict]:
    return [record["round"] for record in log_of(folder) if "round" in record]


@pytest.mark.slow
def test_rounds_by_the_command_line(run, networks):
    """Five steps: rounds of two steps along paths of two and then three networks."""
    status, output, results = run("global_normal", *ROUNDS, "--choose-network=largest")
    assert status == 0, output
    folder = run_folder(results)
    rounds = rounds_of(folder)
    assert [(r["step"], r["length"], r["path"].count("→")) for r in rounds] == [
        (0, 2, 2), (2, 3, 3), (4, 3, 3),
    ]  # fmt: skip
    for entry in rounds:
        assert entry["path"].startswith(entry["network"])
        assert entry["violation"] >= entry["mean violation"] > 0
    trained = {entry["network"].replace(" → ", "2") for entry in rounds}
    for name in OTHERS:
        ours = read_weights(folder / f"{name}_global.pth")[0]
        start = read_weights(networks / row_of(name))[0]
        same = all(torch.equal(ours[key], start[key]) for key in ours)
        assert same == (name not in trained), name
    table = json.loads((folder / "violations.json").read_text())
    assert list(table) == ["before", "after"]
    longest = "mean violation of the 6 paths of length 3"
    for column in table.values():
        paths = [v for p, v in column["violations"].items() if p.count("→") == 3]
        assert column["summary × 100"][longest] == pytest.approx(100 * sum(paths) / 6)
        assert len(column["direct errors"]) == 9
    closing = json.loads((folder / "evaluation.json").read_text())
    for column, closed in (("before", "before"), ("after", "trained")):
        direct = table[column]["direct errors"]["rgb → normal"]
        assert 100 * direct == pytest.approx(closing[closed]["direct L1 × 100"], rel=1e-5)
    assert longest in output
    assert Image.open(folder / "violations.png").size[0] > 1000
    assert any(record.get("window") == "violations" for record in log_of(folder))


def row_of(name: str) -> str:
    return transfer_by_name(name).checkpoint


@pytest.mark.slow
def test_from_scratch_every_network_first_learns_from_its_labels(run, networks):
    flags = ("--init=scratch", "--direct-steps=3", "--path-length=2", "--choose-network=random",
             "--choose-path=random")  # fmt: skip
    status, output, results = run("global_depth", *ROUNDS, *flags)
    assert status == 0, output
    folder = run_folder(results)
    assert [entry["step"] for entry in rounds_of(folder)] == [3]
    assert (folder / "rgb2depth_zbuffer_global.pth").is_file()
    for name in OTHERS:
        if name != "rgb2depth_zbuffer":
            ours, start = read_weights(folder / f"{name}_global.pth")[0], row_of(name)
            start = read_weights(networks / start)[0]
            assert not any(torch.equal(ours[key], start[key]) for key in ours if "conv" in key)


@pytest.mark.parametrize(
    "flag, sentence",
    [
        ("--path-length=4", "--path-length is from 2 to 3"),
        ("--direct-steps=6", "--direct-steps is from 0 to the 5 steps of the run"),
        ("--round-steps=0", "--round-steps"),
        ("--choose-network=smallest", "--choose-network"),
        ("--choose-path=longest", "--choose-path"),
    ],
)
def test_options_that_cannot_be(run, flag, sentence):
    given = [f for f in ROUNDS if f.partition("=")[0] != flag.partition("=")[0]]
    status, output, results = run("global_normal", *given, flag)
    assert status == 2 and sentence in output and "Traceback" not in output
    assert not list(results.glob("*/log.jsonl"))


def stopped_and_resumed(run, monkeypatch, results, *arguments):
    """Run again, but stopped after the third step and resumed. Returns the run's folder."""
    before = set(results.iterdir())
    take = Trainer._take_step

    def stopped(trainer, batch):
        take(trainer, batch)
        if trainer.global_step == 3:
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_take_step", stopped)
        status, output, _ = run(*arguments)
    assert status == 128 + signal.SIGTERM, output
    (folder,) = set(results.iterdir()) - before
    assert last_state(folder)["training"]["progress"]["step"] == 3
    status, output, _ = run(f"--resume={folder}", defaults=False)
    assert status == 0, output
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        ("geonet_normal",),
        ("multitask_normal",),
        ("global_normal", "--round-steps=2"),
        ("global_depth", "--direct-steps=2", "--round-steps=2", "--choose-path=random",
         "--choose-network=random", "--init=scratch"),
    ],
    ids=lambda arguments: arguments[0],
)  # fmt: skip
def test_stopped_and_resumed_is_uninterrupted(run, monkeypatch, arguments):
    arguments += (*QUICK, "--steps-per-epoch=5", "--batch-size=2", "--schedule=cosine")
    status, output, results = run(*arguments)
    assert status == 0, output
    whole = run_folder(results)
    again = stopped_and_resumed(run, monkeypatch, results, *arguments)
    assert_the_same(whole, again)
    for file in whole.glob("violations.*"):
        assert (again / file.name).read_bytes() == file.read_bytes()
