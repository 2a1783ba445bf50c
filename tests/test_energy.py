import random

import pytest
import torch

from balancing import balance, balanced_gradient, gradients_of
from choosing import choose_losses, wins
from energy import (
    direct_only,
    energy_configs,
    get_config,
    loss_kind,
    loss_pairs,
    loss_title,
    paths_for,
    perceptual_losses,
    target_through_domains,
    yardstick_of,
)
from graph import edges_of
from losses import angular_error, evaluate_losses, masked_loss, valid_error
from transfers import TRANSFERS
from utils import UserError


@pytest.mark.parametrize("name", energy_configs)
def test_every_configuration_walks_the_graph(name):
    config = energy_configs[name]
    assert list(config) == ["paths", "freeze_list", "losses", "plots"]
    assert set(edges_of(config["paths"])) <= set(TRANSFERS)
    assert set(config["freeze_list"]) <= set(TRANSFERS)
    for loss in config["losses"]:
        for first, second in loss_pairs(config, loss):
            assert config["paths"][first][-1] == config["paths"][second][-1] or "imagenet" in loss
    for loss in perceptual_losses(config):
        if "mae" in config["losses"]:
            assert loss_kind(config["losses"], yardstick_of(loss)) == "yardstick"
    for plot in config["plots"].values():
        assert set(plot["paths"]) <= set(config["paths"])


def test_kinds():
    losses = energy_configs["multiperceptual_reshading"]["losses"]
    kinds = {n: loss_kind(losses, n) for n in ("mae", "percep_normal", "direct_normal")}
    assert list(kinds.values()) == ["direct", "perceptual", "yardstick"]
    # the same name is the error against the truth where nothing is compared with it
    assert loss_kind(energy_configs["energy_calc"]["losses"], "direct_normal") == "direct"


def test_only_the_paths_of_the_losses_in_use():
    config = energy_configs["multiperceptual_normal"]
    assert set(paths_for(config, ["mae", "percep_curv"])) == {"n(x)", "y^", "f(n(x))", "f(y^)"}
    assert loss_title(config, "percep_curv") == "percep_curv_mae : f(n(x)) -> f(y^)"
    assert loss_title(config, "mae", "mse") == "mse : n(x) -> y^"


def test_an_own_configuration_by_the_builder():
    config = target_through_domains("keypoints2d", ("normal",), ("x", "y^", "n(x)"))
    assert config["losses"]["percep_normal"] == {("train", "val"): [("g(n(x))", "g(y^)")]}
    assert config["freeze_list"] == [("keypoints2d", "normal")]
    assert perceptual_losses(direct_only("rgb", "normal")) == []


def test_unknown_configuration():
    with pytest.raises(UserError, match="did you mean multiperceptual_normal"):
        get_config("multiperceptual_normals")


def test_a_loss_of_several_pairs_counts_each_once():
    pairs = [("n(x)", "y^"), ("n(x)", "z")]
    config = {"paths": {"n(x)": ("rgb", "rgb"), "y^": ("rgb",), "z": ("rgb",)},
              "losses": {"mae": {("train",): pairs}}}  # fmt: skip
    values = {"n(x)": torch.zeros(2, 3, 8, 8), "y^": torch.ones(2, 3, 8, 8),
              "z": 3 * torch.ones(2, 3, 8, 8)}  # fmt: skip
    assert evaluate_losses(config, ["mae"], values)["mae"].tolist() == [4, 4]


def test_masked_pixels_count_as_zero_and_stay_in_the_mean():
    prediction, target = torch.ones(1, 1, 2, 2), torch.zeros(1, 1, 2, 2)
    mask = torch.tensor([[[[True, False], [True, True]]]])
    assert masked_loss(prediction, target, mask).item() == 0.75
    assert masked_loss(3 * prediction, target, mask, squared=True).item() == 6.75
    assert valid_error(prediction, target, mask).item() == 1


def test_balance():
    weights = balance({"mae": 1.0, "a": 2.0, "b": 5.0})
    assert weights == pytest.approx({"mae": 7 / 8, "a": 6 / 16, "b": 3 / 16})
    assert balance({"mae": 3.0}) == {"mae": 1.0}


def test_a_batch_without_gradients_changes_nothing():
    weight = torch.nn.Parameter(torch.ones(3))
    losses = {"mae": (0 * weight).sum(), "a": (0 * weight).sum()}
    gradients, weights, _ = balanced_gradient(gradients_of(losses, [weight]), 2)
    assert gradients[0].tolist() == [0, 0, 0]
    assert all(torch.isfinite(w) for w in weights.values())


def test_choice():
    names = ["a", "b", "c", "d"]
    rates = {"a": 0.5, "b": 0.9, "c": 0.5, "d": 1.0}
    assert choose_losses(names, 3, rates, random.Random(0)) == ["d", "b", "a"]
    assert choose_losses(names, 0, rates, random.Random(0)) == []
    drawn = {tuple(choose_losses(names, 2, rates, random.Random(s), True)) for s in range(50)}
    assert len(drawn) > 8
    # as long as one has no win rate, the choice is random
    del rates["c"]
    assert {choose_losses(names, 1, rates, random.Random(s))[0] for s in range(50)} == set(names)


def test_win_rate():
    assert wins(torch.tensor([1.0, 2, 3, 4]), torch.tensor([2.0, 1, 1, 4])).mean().item() == 0.5


def test_angular_error():
    def encoded(*vector):
        return ((torch.tensor(vector, dtype=torch.float64) + 1) / 2).view(1, 3, 1, 1)

    mask = torch.ones(1, 3, 1, 1, dtype=torch.bool)
    for angle in (0.0, 1e-4, 30.0, 90.0, 180.0):
        radian = torch.deg2rad(torch.tensor(angle, dtype=torch.float64))
        other = encoded(torch.sin(radian), 0, torch.cos(radian))
        assert angular_error(other, encoded(0, 0, 1), mask).item() == pytest.approx(angle, abs=1e-5)
