"""Parameter groups: every parameter in one, and steps as long as in the plain network."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import hyperlight as hl
from tests.models import PRIMARIES, mlp

SPACE = {"g": hl.Uniform(0.0, 1.0)}
HEADS = {
    "dense": hl.Dense(),
    "low rank": hl.LowRank(1),
    "chunked": hl.Chunked(8),
    "mixed": {"*.weight": hl.LowRank(1), "*": hl.Dense()},
}


def names_of(model: hl.HyperModel, groups: Sequence[dict[str, object]]) -> dict[str, set[str]]:
    names = {id(p): name for name, p in model.named_parameters()}
    return {group["name"]: {names[id(p)] for p in group["params"]} for group in groups}


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("primary", ["mlp", "convolutional", "weight norm", "lstm"])
def test_every_trainable_parameter_stands_in_one_group(primary: str, head: str) -> None:
    inputs = {**SPACE, "site": hl.Categorical(3)}
    model = hl.hypernetize(PRIMARIES[primary][0](), inputs, head=HEADS[head])
    groups = hl.parameter_groups(model, 1e-3)
    beside = ["unpredicted"] if primary == "convolutional" else []  # its normalisation layer
    assert [group["name"] for group in groups] == ["theta0", "trunk", "head", *beside]
    listed = [id(p) for group in groups for p in group["params"]]
    assert len(listed) == len(set(listed))
    assert set(listed) == {id(p) for p in model.parameters()}
    found = names_of(model, groups)
    predicted = {f"primary.{name}" for name in model.hypernet.shapes}
    own = {n for n, _ in model.named_parameters() if n.startswith("primary.")}
    assert found["theta0"] == own & predicted
    assert found.get("unpredicted", set()) == own - predicted
    assert found["head"] == {
        n for n, _ in model.named_parameters() if n.startswith("hypernet.head.")
    }
    assert "hypernet.embeddings.0.weight" in found["trunk"]


def test_frozen_parameters_and_empty_groups_are_left_out() -> None:
    model = hl.hypernetize(mlp(), SPACE)
    model.primary.requires_grad_(False)
    model.hypernet.trunk.layers[0].weight.requires_grad_(False)
    groups = hl.parameter_groups(model, 1e-3)
    assert [group["name"] for group in groups] == ["trunk", "head"]
    assert "hypernet.trunk.layers.0.weight" not in names_of(model, groups)["trunk"]
    model.hypernet.head.requires_grad_(False)
    assert [group["name"] for group in hl.parameter_groups(model, 1e-3)] == ["trunk"]
    model.requires_grad_(False)
    with pytest.raises(hl.ConfigurationError, match="nothing to train. Unfreeze"):
        hl.parameter_groups(model, 1e-3)


def rates_of(model: hl.HyperModel, lr: float) -> dict[str, float]:
    return {group["name"]: group["lr"] for group in hl.parameter_groups(model, lr)}


def test_theta0_and_head_share_the_rate_and_the_trunk_has_half() -> None:
    """The head's is divided by the size of the features beside that."""
    model = hl.hypernetize(mlp(), SPACE)
    everything = rates_of(model, 6e-3)
    assert everything["theta0"] == everything["trunk"] == 3e-3
    size = 3e-3 / everything["head"]
    model.primary.requires_grad_(False)
    assert rates_of(model, 6e-3) == pytest.approx({"trunk": 3e-3, "head": 6e-3 / size})
    model.hypernet.trunk.requires_grad_(False)
    model.hypernet.projection.requires_grad_(False)
    assert rates_of(model, 6e-3) == pytest.approx({"head": 6e-3 / size})
    model.primary.requires_grad_(True)
    assert rates_of(model, 6e-3) == pytest.approx({"theta0": 3e-3, "head": 3e-3 / size})
    model.hypernet.head.requires_grad_(False)
    assert rates_of(model, 6e-3) == {"theta0": 6e-3}


def test_parameters_that_are_not_predicted_keep_the_rate() -> None:
    primary = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    model = hl.hypernetize(primary, SPACE)
    groups = hl.parameter_groups(model, 3e-3, weight_decay={"unpredicted": 0.5})
    assert [group["name"] for group in groups] == ["theta0", "trunk", "head", "unpredicted"]
    assert names_of(model, groups)["unpredicted"] == {"primary.1.weight", "primary.1.bias"}
    assert (groups[-1]["lr"], groups[-1]["weight_decay"]) == (3e-3, 0.5)
    assert groups[0]["lr"] == 1.5e-3
    # beside them alone nothing shares
    model.hypernet.requires_grad_(False)
    assert rates_of(model, 3e-3) == {"theta0": 3e-3, "unpredicted": 3e-3}
    for layer in (primary[0], primary[2]):
        layer.requires_grad_(False)
    assert rates_of(model, 3e-3) == {"unpredicted": 3e-3}


def test_a_parameter_that_head_and_primary_share_takes_the_rate_of_the_head() -> None:
    model = hl.hypernetize(nn.Linear(3, 1, bias=False), SPACE, hidden=(3,))
    model.primary.weight = nn.Parameter(torch.randn(1, 3))
    extra = nn.Linear(3, 3, bias=False)
    extra.weight = model.hypernet.head.weight
    model.primary.add_module("extra", extra)
    groups = {group["name"]: group["params"] for group in hl.parameter_groups(model, 1.0)}
    assert [id(p) for p in groups["head"]] == [id(extra.weight)]
    assert [id(p) for p in groups["theta0"]] == [id(model.primary.weight)]
    assert "unpredicted" not in groups


OPTIMIZERS = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "sgd": lambda groups: torch.optim.SGD(groups, momentum=0.9, nesterov=True),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("primary", ["mlp", "tied"])
def test_torch_optimizers_and_schedulers_take_the_groups(primary: str, optimizer: str) -> None:
    model = hl.hypernetize(PRIMARIES[primary][0](), SPACE)
    rule = "sgd" if optimizer == "sgd" else "adam"
    groups = hl.parameter_groups(model, 1e-2, rule=rule, weight_decay={"theta0": 0.5})
    made = OPTIMIZERS[optimizer](groups)
    rates = [group["lr"] for group in made.param_groups]
    assert [group["weight_decay"] for group in made.param_groups] == [0.5, 0.0, 0.0]
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        made, max_lr=rates, total_steps=10, cycle_momentum=False
    )
    halved = torch.optim.lr_scheduler.LambdaLR(
        OPTIMIZERS[optimizer](hl.parameter_groups(model, 1e-2, rule=rule)), lambda step: 0.5
    )
    assert halved.get_last_lr() == pytest.approx([0.5 * rate for rate in rates])
    x = PRIMARIES[primary][1]()
    before = copy.deepcopy(model.state_dict())
    for _ in range(3):
        made.zero_grad()
        model(x, g=0.3).square().mean().backward()
        made.step()
        scheduler.step()
    moved = [name for name, t in model.state_dict().items() if not torch.equal(t, before[name])]
    assert set(moved) == set(before)
    # an optimizer's state goes through a save and a load
    other = OPTIMIZERS[optimizer](hl.parameter_groups(model, 1e-2, rule=rule))
    other.load_state_dict(made.state_dict())
    assert [group["name"] for group in other.param_groups] == ["theta0", "trunk", "head"]


def test_groups_are_the_same_whenever_they_are_made_and_touch_no_random_state() -> None:
    model = hl.hypernetize(mlp(), {"z": hl.Normal(4)})
    state = torch.get_rng_state()
    first, second = (hl.parameter_groups(model, 1e-3)[-1]["lr"] for _ in range(2))
    assert first == second
    assert torch.equal(torch.get_rng_state(), state)


def assert_one_on_average(shares: list[float]) -> None:
    """Within 5 standard errors, where 1 is itself the mean over 256 draws; none far off."""
    deviation = torch.tensor(shares).std().item()
    error = deviation * (1 / len(shares) + 1 / 256) ** 0.5
    assert error < 0.15
    assert sum(shares) / len(shares) == pytest.approx(1.0, abs=5 * error)
    assert min(shares) > 0.1
    assert max(shares) < 4.0


# What else trains beside the head.
BESIDE = pytest.mark.parametrize("beside", ["nothing", "theta0"])


def train_alone(model: hl.HyperModel, beside: str) -> None:
    """Freeze all but the head and what trains beside it."""
    model.hypernet.trunk.requires_grad_(False)
    model.primary.requires_grad_(beside == "theta0")


@pytest.mark.parametrize("width", [8, 64, 512])
@pytest.mark.parametrize("dimensions", [1, 32])
@pytest.mark.parametrize("encoding", [hl.CosSin(), hl.CosSin(per_input=True)], ids=["unit", "each"])
@BESIDE
def test_one_step_of_adam_moves_predicted_weights_by_the_rate(
    width: int, dimensions: int, encoding: nn.Module, beside: str
) -> None:
    """The first step of Adam is rate x sign(gradient), so that of a predicted weight is exactly
    the head's rate x |f|_1, and that of theta0 beside it: the rate on average over the inputs."""
    torch.manual_seed(1)
    model = hl.hypernetize(
        mlp().double(), {"z": hl.Normal(dimensions)}, hidden=(width,), encoding=encoding
    )
    rate = 1e-4
    train_alone(model, beside)
    groups = hl.parameter_groups(model, rate)
    begin = copy.deepcopy(model.state_dict())
    x, y = torch.randn(16, 3).double(), torch.randn(16, 2).double()
    moved = []
    for _ in range(40):
        model.load_state_dict(begin)
        optimizer = torch.optim.Adam(groups, eps=1e-30)
        z = model.sample()
        before = model.predict(**z)
        F.mse_loss(model(x, **z), y).backward()
        optimizer.step()
        optimizer.zero_grad()
        after = model.predict(**z)
        steps = torch.cat([(after[name] - before[name]).abs().flatten() for name in before])
        assert torch.allclose(steps, steps[0].expand_as(steps), rtol=1e-6)
        moved.append(steps[0].item() / rate)
    assert_one_on_average(moved)


def steps_beside_plain(
    model: hl.HyperModel, groups: list[dict[str, Any]], rate: float, rule: str, draws: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """How far the first step moves the predicted weights, and how far one of the plain network
    at this rate would have, for draws of the inputs.
    """
    (first, *_, last) = model.primary.children()
    begin = copy.deepcopy(model.state_dict())
    x = torch.randn(16, first.in_features).double()
    y = torch.randn(16, last.out_features).double()
    for _ in range(draws):
        model.load_state_dict(begin)
        z = model.sample()
        before = {name: t.detach().requires_grad_() for name, t in model.predict(**z).items()}
        loss = F.mse_loss(hl.bind(model.primary, before)(x), y)
        plain = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(before.values()))])
        F.mse_loss(model(x, **z), y).backward()
        made = torch.optim.Adam(groups, eps=1e-30) if rule == "adam" else torch.optim.SGD(groups)
        made.step()
        made.zero_grad()
        after = model.predict(**z)
        moved = torch.cat([(after[name] - before[name]).flatten() for name in before])
        yield moved.detach(), -rate * (plain.sign() if rule == "adam" else plain)


@pytest.mark.parametrize("width", [8, 512])
@pytest.mark.parametrize("dimensions", [1, 32])
@BESIDE
def test_one_step_of_sgd_moves_predicted_weights_as_in_the_plain_network(
    width: int, dimensions: int, beside: str
) -> None:
    torch.manual_seed(1)
    model = hl.hypernetize(mlp().double(), {"z": hl.Normal(dimensions)}, hidden=(width,))
    rate = 1e-3
    train_alone(model, beside)
    groups = hl.parameter_groups(model, rate, rule="sgd")
    shares = []
    for moved, expected in steps_beside_plain(model, groups, rate, "sgd", draws=40):
        share = float(moved @ expected / expected.square().sum())
        assert torch.allclose(moved, share * expected, rtol=1e-6, atol=1e-15)  # the same direction
        shares.append(share)
    assert_one_on_average(shares)


@pytest.mark.parametrize("width", [32, 128, 1024])
@pytest.mark.parametrize("rule", ["adam", "sgd"])
def test_one_step_of_all_groups_goes_down_the_gradient_about_as_far_as_the_rate_says(
    width: int, rule: str
) -> None:
    """As far by theta0 and the head, and somewhat farther by the trunk."""
    torch.manual_seed(2)
    primary = nn.Sequential(nn.Linear(20, 40), nn.Tanh(), nn.Linear(40, 10)).double()
    model = hl.hypernetize(primary, {"z": hl.Uniform(0.0, 1.0)}, hidden=(16, width))
    rate = 1e-6
    groups = hl.parameter_groups(model, rate, rule=rule)
    steps = steps_beside_plain(model, groups, rate, rule, draws=20)
    shares = [float(moved @ expected / expected.square().sum()) for moved, expected in steps]
    assert 0.95 < sum(shares) / len(shares) < 1.5


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"lr": 0.0}, "lr was 0.0; expected a positive rate"),
        ({"lr": 1e-3, "rule": "adan"}, "rule was 'adan'; .* Did you mean 'adam'"),
        ({"lr": 1e-3, "weight_decay": {"heads": 0.1}}, "group 'heads'; .* Did you mean 'head'"),
        ({"lr": 1e-3, "weight_decay": -1.0}, "weight_decay of 'theta0' was -1.0"),
    ],
)
def test_settings_of_groups_that_make_no_sense_are_refused(
    arguments: dict[str, object], words: str
) -> None:
    with pytest.raises(hl.ConfigurationError, match=words):
        hl.parameter_groups(hl.hypernetize(mlp(), SPACE), **arguments)


@pytest.mark.parametrize("broken", [0.0, float("nan")])
def test_features_without_size_are_refused(broken: float) -> None:
    model = hl.hypernetize(mlp(), SPACE)
    with torch.no_grad():
        for parameter in model.hypernet.trunk.parameters():
            parameter.fill_(broken)
    with pytest.raises(hl.ConfigurationError, match="size (0|nan) on average .* positive number"):
        hl.parameter_groups(model, 1e-3)
