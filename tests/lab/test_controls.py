"""Networks without a hypernetwork, in every task: what they start as, and what gamma changes."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_fabric import Fabric
from safetensors.torch import load_file
from torch import Tensor, nn

import hyperlight as hl
from hyperlight.errors import InputError
from hyperlight.lab.controls import (
    ByHand,
    Channel,
    Control,
    Dropout,
    Ensemble,
    Film,
    Fixed,
    Separate,
    Shared,
    input_channels,
)
from hyperlight.lab.errors import LabError
from hyperlight.lab.primaries import LeNet, ResNetLike, UNet
from hyperlight.lab.record import Run
from hyperlight.lab.tasks import hypermorph
from hyperlight.lab.tasks.base import Formulation, Task
from hyperlight.lab.tasks.bayes import Bayes, BayesTask
from hyperlight.lab.tasks.families import Families, FamiliesTask
from hyperlight.lab.tasks.hypermorph import Hypermorph, HypermorphTask
from hyperlight.lab.tasks.scale_space import ScaleSpace, ScaleSpaceTask
from hyperlight.lab.tasks.vae import Vae, VaeTask
from hyperlight.lab.train import Training, train
from tests.lab.making import equal_runs

CPU = torch.device("cpu")
CONTROLS: dict[Formulation, type[Control]] = {
    **{"shared": Shared, "channel": Channel, "film": Film},
    "hand": ByHand,
}
GAMMA: dict[str, hl.Input] = {"gamma": hl.Uniform(0.0, 1.0)}

every_control = pytest.mark.parametrize("formulation", CONTROLS)


def _family(**changes: Any) -> FamiliesTask:
    small = {"hidden": (8,), "width": 8, "gammas": 4, "evaluation_gammas": 2}
    return FamiliesTask(Families(**{**small, **changes}), CPU)


TASKS: dict[str, Task] = {
    "bayes": BayesTask(
        Bayes(hidden=(8,), evaluation_gammas=2, evaluation_images=20, posterior_samples=2), CPU
    ),
    "bayes, 3 inputs": BayesTask(
        Bayes(
            **{"hidden": (8,), "prior": "normal", "dimensions": 3, "evaluation_gammas": 2},
            **{"evaluation_images": 20, "final_images": 20, "posterior_samples": 2},
        ),
        CPU,
    ),
    "hypermorph": HypermorphTask(
        Hypermorph(
            **{"size": (16, 16), "levels": 2, "channels": 4, "hidden": (8,)},
            **{"evaluation_pairs": 4, "final_pairs": 8},
        ),
        CPU,
    ),
    "scale_space": ScaleSpaceTask(
        ScaleSpace(
            **{"size": (16, 16), "stages": (4, 8), "hidden": (8,), "evaluation_gammas": 2},
            **{"evaluation_images": 20, "final_images": 20},
        ),
        CPU,
    ),
    "segmentation": ScaleSpaceTask(
        ScaleSpace(
            **{"size": (16, 16), "problem": "segmentation", "levels": 2, "channels": 4},
            **{"hidden": (8,), "evaluation_gammas": 2, "evaluation_images": 4, "final_images": 4},
        ),
        CPU,
    ),
    "hat": _family(),
    "permuted": _family(family="permuted", count=3, evaluation_images=20),
    "filtered": _family(family="filtered", width=16),
    "vae": VaeTask(
        Vae(
            **{"size": 8, "widths": (8,), "latent": 2, "hidden": (8,), "directions": None},
            **{"gammas": 4, "evaluation_gammas": 2, "evaluation_images": 20},
        ),
        CPU,
    ),
}
every_task = pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)


def _settings(**changes: Any) -> Training:
    usual = {"steps": 3, "evaluate_every": 3, "batch_size": 8, "lr": 1e-2}
    return Training(**{**usual, **changes})


def _whole(task: Task, formulation: Formulation, fabric: Fabric, folder: Path | None) -> Run:
    *_, run = train(task, formulation, 0, _settings(), fabric, folder, pictures=False)
    return run


# --- in every task ------------------------------------------------------------------------


@every_task
@every_control
def test_a_control_is_trained_and_read_again(
    task: Task, formulation: Formulation, fabric: Fabric, tmp_path: Path
) -> None:
    fresh = task.model(formulation, 0)
    assert type(fresh) is CONTROLS[formulation]
    run = _whole(task, formulation, fabric, tmp_path)
    assert run.model is not None
    for name, value in fresh.named_parameters():
        assert not torch.equal(run.model.get_parameter(name), value)
    assert run.initial is run.final is None
    assert run.outcome is not None
    assert equal_runs(run, _whole(task, formulation, fabric, None))
    again = _whole(task, formulation, fabric, tmp_path)  # from the files
    assert equal_runs(run, again)
    saved = load_file(tmp_path / "model.safetensors")
    assert sum(t.numel() for t in saved.values()) == sum(p.numel() for p in fresh.parameters())


@every_task
def test_all_weights_of_a_control_are_trained_at_the_rate(task: Task) -> None:
    for formulation in CONTROLS:
        model = task.model(formulation, 0)
        (group,) = _settings(rates="groups").make_optimizer(model).param_groups
        assert group["lr"] == 1e-2
        assert len(group["params"]) == len(list(model.parameters()))


@every_task
def test_controls_start_as_the_plain_network(task: Task) -> None:
    plain = task.model("plain", 5).primary.state_dict()
    for formulation in ("shared", "film", "hand"):
        primary = task.model(formulation, 5).primary.state_dict()
        assert all(torch.equal(value, plain[name]) for name, value in primary.items())
    larger = task.model("channel", 5).primary.state_dict()
    wider = [name for name in plain if larger[name].shape != plain[name].shape]
    assert all(larger[name].shape[1] > plain[name].shape[1] for name in wider)
    # In a residual block two layers read the image; a decoder reads gamma as well.
    twice = "stages.0.shortcut.weight" in plain or any(n == "decoder.0.weight" for n in plain)
    assert len(wider) == (2 if twice else 1)


def test_a_network_reads_the_pictures_of_a_family(fabric: Fabric, tmp_path: Path) -> None:
    task = _family(family="picture", count=5)
    for formulation in CONTROLS:
        run = _whole(task, formulation, fabric, tmp_path / formulation)
        assert run.outcome is not None
        assert run.outcome.figures["test error"] < 100.0
        saved = load_file(tmp_path / formulation / "model.safetensors")
        assert run.model is not None
        names = {name for name, _ in run.model.named_parameters()}
        if formulation in ("channel", "hand"):  # with the network that reads the pictures
            assert set(saved) == names
            assert any(name.startswith("numbers.networks.gamma") for name in names)


def test_the_decoder_reads_gamma_as_well() -> None:
    task = TASKS["vae"]
    model = task.model("channel", 0)
    first, second = (model.primary.decode(torch.tensor([[0.5, 0.5, g]])) for g in (0.0, 1.0))
    assert not torch.equal(first, second)


def _curve(task: Task, model: Any) -> list[float]:
    return [task.at(model, gamma)["loss"] for gamma in (0.1, 0.4)]


@pytest.mark.parametrize("name", ["bayes", "bayes, 3 inputs"])
def test_what_gamma_changes(name: str, fabric: Fabric) -> None:
    task = TASKS[name]
    depends = {}
    for formulation in CONTROLS:
        run = _whole(task, formulation, fabric, None)
        first, second = _curve(task, run.model)
        depends[formulation] = first != second
    assert depends == {"shared": False, "channel": True, "film": True, "hand": True}


def test_registration_chooses_the_best_of_eleven_gammas(
    fabric: Fabric, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[tuple[Any, ...]] = []
    draw = hypermorph._curves

    def drawing(*given: Any) -> Any:
        drawn.append(given)
        return draw(*given)

    monkeypatch.setattr(hypermorph, "_curves", drawing)
    task = TASKS["hypermorph"]
    assert isinstance(task, HypermorphTask)
    for formulation in CONTROLS:
        model = _whole(task, formulation, fabric, None).model
        assert isinstance(model, Control)
        outcome = task.finish(model, tmp_path)
        best = outcome.figures["best gamma of 11, validation"]
        assert best in [i / 10 for i in range(11)]
        moving, fixed = task._pairs(task.valid, task.config.final_pairs)
        with torch.no_grad():
            found = [
                task.measure(model.bind(gamma=i / 10), moving, fixed, i / 10)["dice"]
                for i in range(11)
            ]
        assert found[round(10 * best)] == max(found)
        there = outcome.figures["dice there, test, of 11"]
        assert there == task.at(model, best)["dice"]
        assert "best gamma by tune" not in outcome.figures
        (_, _, rows) = outcome.tables[0]
        fields = {tuple(row[1:4]) for row in rows}  # Dice, folding and squared error
        assert (len(fields) == 1) == (formulation == "shared")
        assert all(path.is_file() for _, path in outcome.pictures)
        assert drawn[-1][-2:] == (best, "best of 11")


# --- the networks ---------------------------------------------------------------------------

PRIMARIES: dict[str, tuple[Any, Tensor, tuple[Any, ...]]] = {
    "LeNet": (lambda more: LeNet(8, 1 + more), torch.rand(3, 1, 8, 8), ()),
    "ResNetLike": (
        lambda more: ResNetLike(2 + more, 5, (4, 8)),
        torch.rand(3, 2, 16, 16),
        (0.3,),
    ),
    "U-Net": (lambda more: UNet(2 + more, 2, 3, 4), torch.rand(3, 2, 16, 16), ()),
    "perceptron": (
        lambda more: nn.Sequential(nn.Linear(4 + more, 8), nn.ReLU(), nn.Linear(8, 2)),
        torch.rand(3, 4),
        (),
    ),
    "perceptron on sequences": (
        lambda more: nn.Sequential(nn.Linear(4 + more, 8), nn.ReLU(), nn.Linear(8, 2)),
        torch.rand(3, 7, 4),
        (),
    ),
    "decoder": (
        lambda more: nn.Sequential(
            *(nn.Linear(4 + more, 8), nn.Unflatten(1, (2, 2, 2))),
            *(nn.ConvTranspose2d(2, 3, 2), nn.ReLU(), nn.ConvTranspose2d(3, 1, 2)),
        ),
        torch.rand(3, 4),
        (),
    ),
}
every_primary = pytest.mark.parametrize("name", PRIMARIES)
SPACES: dict[str, dict[str, hl.Input]] = {
    "a number": GAMMA,
    "numbers": {"gamma": hl.Normal(3)},
    "a category": {"gamma": hl.Categorical(4)},
    "two inputs": {"gamma": hl.Uniform(0.0, 0.5, (2,)), "task": hl.Categorical(3)},
}
every_space = pytest.mark.parametrize("space", SPACES)


def _make(kind: type[Control], name: str, inputs: dict[str, hl.Input]) -> Any:
    make, x, others = PRIMARIES[name]
    torch.manual_seed(0)
    if kind is Film:
        model: Control = Film(make(0), inputs, hidden=(8, 8))
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.1 * torch.randn_like(p))  # as after some steps
    elif kind is Channel:
        model = Channel(make(input_channels(inputs)), inputs)
    elif kind is ByHand:
        model = ByHand(make(0), inputs, hidden=(8, 8))
    else:
        model = Shared(make(0), inputs)
    return model.double(), x.double(), others


@every_primary
def test_film_is_the_primary_at_the_start(name: str) -> None:
    make, x, others = PRIMARIES[name]
    model = Film(make(0), GAMMA).double()
    expected = model.primary(x.double(), *others)
    for gamma in (0.7, torch.rand(3)):
        assert torch.equal(model(x.double(), *others, gamma=gamma), expected)
    assert expected.std() > 0.0


@every_primary
@every_space
@pytest.mark.parametrize("kind", [Shared, Channel, Film, ByHand])
def test_a_gamma_for_each_is_one_after_the_other(
    kind: type[Control], name: str, space: str
) -> None:
    model, x, others = _make(kind, name, SPACES[space])
    gamma = model.sample((3,), generator=torch.Generator().manual_seed(0))
    assert len(gamma["gamma"].unique(dim=0)) > 1
    found = model(x, *others, **gamma)
    alone = [
        model(x[i : i + 1], *others, **{key: value[i] for key, value in gamma.items()})
        for i in range(3)
    ]
    torch.testing.assert_close(found, torch.cat(alone))
    assert torch.equal(model.bind(**gamma)(x, *others), found)
    one = {key: value[0] for key, value in gamma.items()}
    rows = {key: value[:1].expand_as(value) for key, value in gamma.items()}
    together = model(x, *others, **one)
    torch.testing.assert_close(together, model(x, *others, **rows))
    assert torch.equal(model.bind(**one)(x, *others), together)
    assert (not torch.equal(together, found)) == (kind is not Shared)


@pytest.mark.parametrize("kind", [Channel, Film, ByHand])
def test_each_bound_network_keeps_its_gamma(kind: type[Control]) -> None:
    model, x, _ = _make(kind, "U-Net", GAMMA)
    first, second = model.bind(gamma=0.1), model.bind(gamma=0.9)
    expected = first(x)
    assert not torch.equal(second(x), expected)
    assert torch.equal(first(x), expected)
    assert not any(module._forward_hooks for module in model.modules())


def test_film_leaves_no_hook_when_the_primary_fails() -> None:
    model, _, _ = _make(Film, "U-Net", GAMMA)
    with pytest.raises(RuntimeError):
        model(torch.rand(3, 5, 16, 16), gamma=0.5)
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("kind", [Shared, Channel, Film, ByHand])
def test_a_copy_is_a_network_of_its_own(kind: type[Control]) -> None:
    model, x, _ = _make(kind, "U-Net", GAMMA)
    expected = model(x, gamma=0.3)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for p in other.parameters():
            p.zero_()
    assert torch.equal(model(x, gamma=0.3), expected)
    assert float(other(x, gamma=0.3).detach().abs().max()) == 0.0
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(x, gamma=0.3), expected)


def test_film_scales_and_shifts_every_channel() -> None:
    primary = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Flatten(), nn.Linear(8, 3), nn.Linear(3, 1))
    model = Film(primary, GAMMA)
    assert {name: tuple(shape) for name, shape in model.modulation.shapes.items()} == {
        "0": (2, 2),
        "2": (2, 3),
    }
    both = {
        "0": torch.tensor([[0.5, -1.0], [0.25, 2.0]]),
        "2": torch.tensor([[1.0] * 3, [3.0] * 3]),
    }
    model.modulation.forward = lambda **_: both  # type: ignore[method-assign]
    x = torch.rand(2, 1, 2, 2)
    maps = primary[0](x)
    maps = torch.stack([1.5 * maps[:, 0] + 0.25, 0.0 * maps[:, 1] + 2.0], dim=1)
    expected = primary[3](2.0 * primary[2](maps.flatten(1)) + 3.0)
    torch.testing.assert_close(model(x, gamma=0.5), expected)


def test_the_channels_are_the_numbers_of_gamma() -> None:
    class Seen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(6, 1, 1)

        def forward(self, x: Tensor) -> Tensor:
            return x

    inputs = {"gamma": hl.Uniform(0.0, 0.5, (2,)), "task": hl.Categorical(3)}
    x = torch.rand(2, 1, 2, 2)
    gamma, task = torch.tensor([[0.0, 0.5], [0.25, 0.1]]), torch.tensor([2, 0])
    seen = Channel(Seen(), inputs)(x, gamma=gamma, task=task)
    assert torch.equal(seen[:, :1], x)
    expected = torch.tensor([[0.0, 1.0, 0.0, 0.0, 1.0], [0.5, 0.2, 1.0, 0.0, 0.0]])
    torch.testing.assert_close(seen[:, 1:], expected[..., None, None].expand(2, 5, 2, 2))


class _Brightness(nn.Module):
    """The mean and the largest value of an image."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([x.flatten(1).mean(1), x.flatten(1).amax(1)], dim=1)


def test_a_code_is_what_the_network_of_an_input_gives() -> None:
    space = hl.Encoded(_Brightness(), features=2, shape=(1, 2, 2))
    inputs: dict[str, hl.Input] = {"image": space, "level": hl.Uniform(0.0, 2.0)}
    assert input_channels(inputs) == 3
    seen = Channel(nn.Linear(4, 1), inputs)
    image, x = torch.rand(3, 1, 2, 2), torch.rand(3, 5, 1)
    code = torch.cat([_Brightness()(image), torch.full((3, 1), 0.25)], dim=1)
    expected = seen.primary(torch.cat([x, code[:, None].expand(3, 5, 3)], dim=-1))
    torch.testing.assert_close(seen(x, image=image, level=torch.full((3,), 0.5)), expected)


@pytest.mark.parametrize("batch_shape", [(), (3,)])
def test_by_hand_is_the_same_function_as_ours(batch_shape: tuple[int, ...]) -> None:
    """Given its weights, in float64, without the input encoding and the projection."""
    torch.manual_seed(0)
    make, x, _ = PRIMARIES["perceptron on sequences"]
    x = x.double()
    inputs: dict[str, hl.Input] = {"gamma": hl.Uniform(0.0, 1.0, (2,))}
    ours = hl.hypernetize(make(0), inputs, hidden=(8, 6), directions=None, encoding=None).double()
    hand = ByHand(make(0), inputs, hidden=(8, 6)).double()
    hand.primary.load_state_dict(ours.primary.state_dict())
    trunk = [m for m in ours.hypernet.trunk.modules() if isinstance(m, nn.Linear)]
    layers = [m for m in hand.hypernetwork if isinstance(m, nn.Linear)]
    with torch.no_grad():
        for own, theirs in zip(layers, trunk, strict=False):
            own.weight.copy_(theirs.weight[:, : own.in_features])  # of ours, the rest reads zeros
            own.bias.copy_(theirs.bias)
        layers[-1].weight.copy_(ours.hypernet.head.weight)
        layers[-1].bias.zero_()  # of ours, theta0 is the bias
    gamma = ours.sample(batch_shape)
    found, expected = hand(x, **gamma), ours(x, **gamma)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert not torch.allclose(expected, ours.primary(x), rtol=1e-3)


def test_the_one_gamma_of_a_plain_network() -> None:
    model = Fixed(nn.Linear(2, 1), {"gamma": torch.tensor([0.1, 0.2])})
    assert torch.equal(model.sample((3,))["gamma"], torch.tensor([[0.1, 0.2]] * 3))
    assert model.sample()["gamma"].shape == (2,)


def test_plain_networks_side_by_side_are_each_as_alone() -> None:
    primary = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    gammas = torch.tensor([0.1, 1.0])
    model = Separate(primary, {"gamma": gammas})
    draws = model.sample((6,))["gamma"]
    assert draws.tolist() == gammas.repeat_interleave(3).tolist()
    x, wanted = (torch.rand(6, n, dtype=torch.float64) for n in (3, 2))
    assert torch.equal(model(x, gamma=draws), primary(x))  # all start as the same
    rate = torch.optim.Adam(model.parameters(), lr=0.1)
    alone = [copy.deepcopy(primary) for _ in gammas]
    rates = [torch.optim.Adam(net.parameters(), lr=0.1) for net in alone]
    for _ in range(3):
        rate.zero_grad()
        ((model(x, gamma=draws) - wanted).square() * draws.unsqueeze(1)).sum().backward()
        rate.step()
        for i, net in enumerate(alone):
            own = slice(3 * i, 3 * i + 3)
            rates[i].zero_grad()
            (gammas[i] * (net(x[own]) - wanted[own]).square()).sum().backward()
            rates[i].step()
    for gamma, net in zip(gammas.tolist(), alone, strict=True):
        torch.testing.assert_close(model.bind(gamma=gamma)(x), net(x))
    assert not torch.equal(alone[0](x), alone[1](x))
    assert torch.equal(model.bind(gamma=0.2)(x), model.bind(gamma=0.1)(x))  # the nearest
    with pytest.raises(LabError) as raised:
        model.sample((5,))
    assert str(raised.value) == (
        "A batch was to have 5 gammas for plain networks of 2; expected a multiple of 2, so that "
        "each has an equal part of it."
    )


def test_an_ensemble_divides_its_batch() -> None:
    networks = [nn.Linear(3, 2) for _ in range(3)]
    model, x = Ensemble(networks), torch.rand(6, 3)
    expected = torch.cat([net(part) for net, part in zip(networks, x.chunk(3), strict=True)])
    assert model.sample() == {}
    assert torch.equal(model(x), expected)
    for index, net in enumerate(networks):
        assert model.bind(gamma=torch.tensor(index)) is net
    with pytest.raises(LabError) as raised:
        model(x[:5])
    assert str(raised.value) == (
        "A batch had 5 entries for 3 networks; expected a multiple of 3, so that each has an equal "
        "part of it."
    )


def test_dropout_drops_features_of_every_entry_and_keeps_their_mean() -> None:
    layer = nn.Linear(2000, 2000, bias=False)
    nn.init.eye_(layer.weight)
    model, x = Dropout(layer, 0.25).eval(), torch.ones(2, 2000)
    gamma = model.sample(generator=torch.Generator().manual_seed(0))["gamma"]
    seen = model(x, gamma=gamma)
    assert {round(value, 6) for value in seen.unique().tolist()} == {0.0, round(1 / 0.75, 6)}
    assert float((seen == 0).double().mean()) == pytest.approx(0.25, abs=0.03)
    assert not torch.equal(seen[0], seen[1])  # in training every entry has draws of its own
    assert torch.equal(seen, model(x, gamma=gamma))
    one, other = (model.bind(gamma=seed)(x) for seed in (0, 1))
    assert torch.equal(one[0], one[1])
    assert not torch.equal(one, other)
    assert torch.equal(layer(x), x)  # a call leaves nothing behind
    torch.testing.assert_close(Dropout(layer, 0.0)(x, gamma=0), x)


def test_every_batch_has_draws_of_its_own() -> None:
    model, generator = Dropout(nn.Linear(2, 1), 0.5), torch.Generator().manual_seed(0)
    first, second = (int(model.sample(generator=generator)["gamma"]) for _ in range(2))
    assert first != second


# --- refused ------------------------------------------------------------------------------


def test_dropout_needs_a_linear_layer() -> None:
    with pytest.raises(LabError) as raised:
        Dropout(nn.Conv2d(1, 1, 1), 0.5)
    assert str(raised.value) == (
        "Conv2d has no linear layers; expected one or more, because dropout is in front of them."
    )


@pytest.mark.parametrize("kind", [Channel, Film, ByHand])
def test_gammas_that_do_not_fit_are_refused(kind: type[Control]) -> None:
    model, x, _ = _make(kind, "U-Net", GAMMA)
    text = "Gamma has batch shape (2,) and the batch 3 entries; expected (), or (3,) for one gamma"
    with pytest.raises(LabError, match=re.escape(text)):
        model(x, gamma=torch.rand(2))
    with pytest.raises(InputError, match=re.escape("was 1.5; expected values in [0, 1]")):
        model.bind(gamma=1.5)
    with pytest.raises((LabError, InputError), match="none"):
        model(x)
    with pytest.raises((LabError, InputError), match="'other'"):
        model.bind(gamma=0.5, other=0.5)


def test_the_names_of_inputs_are_checked() -> None:
    model, _, _ = _make(Channel, "U-Net", GAMMA)
    text = (
        "The network was given the inputs 'other'; expected 'gamma'. Pass each by name, as gamma="
    )
    with pytest.raises(LabError, match=text):
        model.bind(other=0.5)


def test_primaries_and_inputs_without_a_place_for_gamma_are_refused() -> None:
    with pytest.raises(LabError, match="Sequential has 1 convolutions and linear layers; expected"):
        Film(nn.Sequential(nn.Linear(2, 1)), GAMMA)
