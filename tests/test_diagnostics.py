"""The profiles: what they vary, what they hold, what they leave alone and what they say."""

from __future__ import annotations

import copy
import math
import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import hyperlight as hl
from tests.models import PRIMARIES, convolutional, mlp
from tests.reference import naive_theta_gradients


def test_the_profile_is_the_std_of_all_predicted_weights() -> None:
    model = hl.hypernetize(mlp(), {"g": hl.LogUniform(1e-3, 1.0)})
    profile = hl.scale_profile(model, points=5)
    assert torch.allclose(profile.gamma, torch.logspace(-3, 0, 5))
    for i, g in enumerate(profile.gamma):
        theta = model.predict(g=g)
        flat = torch.cat([t.flatten() for t in theta.values()])
        assert profile.std[i].item() == pytest.approx(flat.std(correction=0).item(), rel=1e-5)
        for name, t in theta.items():
            found = profile.per_target[name][i].item()
            assert found == pytest.approx(t.std(correction=0).item(), rel=1e-5)
    assert torch.equal(profile.magnitude, profile.gamma)


def test_a_vector_input_is_drawn_and_put_in_the_order_of_its_norm() -> None:
    model = hl.hypernetize(
        mlp(), {"z": hl.Normal(8), "g": hl.Uniform(0.0, 1.0)}, encoding=None, residual=False
    )
    profile = hl.scale_profile(model, "z", points=40)
    assert profile.gamma.shape == (40, 8)
    assert (profile.magnitude.diff() >= 0).all()
    assert torch.allclose(profile.gamma.norm(dim=1), profile.magnitude)
    assert torch.equal(profile.gamma, hl.scale_profile(model, "z", points=40).gamma)
    generator = torch.Generator().manual_seed(7)
    other = hl.scale_profile(model, "z", points=40, generator=generator)
    assert not torch.equal(profile.gamma, other.gamma)


def test_the_words_and_numbers_of_a_flat_profile() -> None:
    model = hl.hypernetize(mlp(), {"g": hl.Uniform(0.0, 1.0)}, init="zero")
    profile = hl.scale_profile(model)
    assert (profile.ratio, profile.variation) == (1.0, 0.0)
    assert math.isnan(profile.correlation)
    assert str(profile).startswith("g: predicted weights have std")


def test_a_single_number_counts_by_its_absolute_value() -> None:
    model = hl.hypernetize(nn.PReLU(), {"g": hl.Uniform(0.0, 1.0)}, init="zero")
    assert torch.allclose(hl.scale_profile(model).std, torch.full((33,), 0.25).double())


def test_several_inputs_need_a_name() -> None:
    model = hl.hypernetize(mlp(), {"a": hl.Normal(), "bee": hl.Normal()})
    with pytest.raises(hl.ConfigurationError, match="several inputs, 'a', 'bee': say which"):
        hl.scale_profile(model)
    with pytest.raises(hl.ConfigurationError, match=r"'be' is not an input .* Did you mean 'bee'"):
        hl.scale_profile(model, "be")


# --- categories ------------------------------------------------------------------


def test_all_categories_are_gone_through() -> None:
    model = hl.hypernetize(mlp(), {"site": hl.Categorical(5), "g": hl.Uniform(0.0, 1.0)})
    profile = hl.scale_profile(model, "site", points=3)
    assert profile.gamma.tolist() == [0, 1, 2, 3, 4]
    for i, std in enumerate(profile.std):
        flat = torch.cat([t.flatten() for t in model.predict(site=i, g=0.5).values()])
        assert std.item() == pytest.approx(flat.std(correction=0).item(), rel=1e-5)
    assert math.isnan(profile.correlation)
    assert hl.scale_profile(model, "g").std.shape == (33,)  # held at the middle category
    model = hl.hypernetize(mlp(), {"sites": hl.Categorical(5, shape=2)})
    profile = hl.scale_profile(model, points=7)
    assert profile.gamma.shape == (7, 2)
    assert profile.magnitude.tolist() == [1.0] * 7


# --- gradients by the predicted weights -----------------------------------------------


def fits(net: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    x, y = batch
    return F.mse_loss(net(x), y)


@pytest.mark.parametrize("primary", ["mlp", "lstm", "tied", "weight norm", "checkpointed"])
def test_gradients_are_those_of_a_copied_primary(primary: str) -> None:
    make, inputs = PRIMARIES[primary]
    model = hl.hypernetize(make().double(), {"g": hl.LogUniform(1e-2, 1.0), "z": hl.Normal(2)})
    batches = []
    for _ in range(2):
        x = inputs().double()
        batches.append((x, torch.randn_like(model(x, g=0.5, z=torch.zeros(2).double())).detach()))
    profile = hl.gradient_profile(model, fits, iter(batches), "g", points=3)
    assert torch.allclose(profile.gamma, torch.tensor([1e-2, 1e-1, 1.0]).double())
    assert profile.norm.shape == (3, 2)
    assert not profile.norm.requires_grad
    for i, g in enumerate(profile.gamma):
        theta = {
            name: t.detach()
            for name, t in model.predict(g=g, z=torch.zeros(2, dtype=torch.float64)).items()
        }
        for j, batch in enumerate(batches):
            gradients = naive_theta_gradients(
                model.primary, theta, lambda net, batch=batch: fits(net, batch)
            )
            flat = torch.cat([gradients[name].flatten() for name in theta])
            assert profile.norm[i, j].item() == pytest.approx(flat.norm().item(), rel=1e-9)
            for name in theta:
                found = profile.per_target[name][i, j].item()
                assert found == pytest.approx(gradients[name].norm().item(), rel=1e-9, abs=1e-12)


def test_numbers_are_those_of_the_mean_over_batches() -> None:
    model = hl.hypernetize(mlp(), {"g": hl.Uniform(0.0, 1.0)})
    batches = [(torch.randn(8, 3), torch.randn(8, 2)) for _ in range(3)]
    profile = hl.gradient_profile(model, fits, batches, points=5)
    mean = profile.norm.mean(dim=1)
    assert profile.ratio == pytest.approx((mean.max() / mean.min()).item())
    assert profile.variation == pytest.approx((mean.std(correction=0) / mean.mean()).item())
    noise = profile.norm.std(dim=1, correction=0) / profile.norm.mean(dim=1)
    assert profile.batch_variation == pytest.approx(noise.mean().item())
    expected = torch.corrcoef(torch.stack([profile.gamma.double(), mean]))[0, 1].item()
    assert profile.correlation == pytest.approx(expected)
    assert str(profile).startswith("g: gradients by the predicted weights have norm ")
    assert profile.verdict in str(profile)


@pytest.mark.parametrize("context", [torch.enable_grad, torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("frozen", [False, True])
def test_a_gradient_profile_changes_nothing(context: Callable[[], Any], frozen: bool) -> None:
    model = hl.hypernetize(convolutional(), {"g": hl.Uniform(0.0, 1.0)})
    model.train()
    model.requires_grad_(not frozen)
    buffers = {name: (b, b.clone()) for name, b in model.named_buffers()}
    modes = [module.training for module in model.modules()]
    state = copy.deepcopy(model.state_dict())
    seen: set[bool] = set()

    def loss(net: nn.Module, x: Tensor) -> Tensor:
        seen.update(module.training for module in net.modules())
        return net(x).square().mean()

    def failing(net: nn.Module, x: Tensor) -> Tensor:
        net(x)
        raise RuntimeError("mine")

    batches = [torch.randn(4, 1, 4, 4) for _ in range(2)]
    with context():
        profile = hl.gradient_profile(model, loss, batches, points=2)
        with pytest.raises(RuntimeError, match="mine"):
            hl.gradient_profile(model, failing, batches)
    assert profile.norm.isfinite().all()
    assert (profile.norm > 0).all()
    assert seen == {True}  # the mode it was in
    assert [module.training for module in model.modules()] == modes
    assert all(p.grad is None and p.requires_grad is not frozen for p in model.parameters())
    for name, buffer in model.named_buffers():
        assert buffer is buffers[name][0]
        assert torch.equal(buffer, buffers[name][1])
    assert all(torch.equal(t, state[name]) for name, t in model.state_dict().items())


class Counting(nn.Module):
    """Puts a new tensor in the place of its buffer at every call."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls = self.calls + 1
        return x


def test_buffers_that_a_forward_replaces_are_put_back() -> None:
    model = hl.hypernetize(nn.Sequential(nn.Linear(3, 2), Counting()), {"g": hl.Uniform(0.0, 1.0)})
    calls = model.primary[1].calls
    hl.gradient_profile(model, lambda net, x: net(x).square().mean(), [torch.randn(4, 3)])
    assert model.primary[1].calls is calls
    assert calls.item() == 0.0


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        (lambda net, x: net(x), r"loss\(net, batch\) returned a tensor of shape \(4, 2\)"),
        (
            lambda net, x: net(x).sum().item(),
            "returned float; expected a floating-point tensor of shape",
        ),
        (lambda net, x: net(x).sum().detach(), "does not depend on the predicted weights"),
        (lambda net, x: x.sum().requires_grad_(), "does not depend on the predicted weights"),
    ],
)
def test_losses_that_have_no_gradient_are_refused(
    loss: Callable[[nn.Module, Tensor], Any], words: str
) -> None:
    model = hl.hypernetize(mlp(), {"g": hl.Uniform(0.0, 1.0)})
    with pytest.raises(hl.ObjectiveError, match=words):
        hl.gradient_profile(model, loss, [torch.randn(4, 3)])


def test_arguments_in_another_order_are_refused() -> None:
    model: Any = hl.hypernetize(mlp(), {"g": hl.Uniform(0.0, 1.0)})
    profile: Any = hl.gradient_profile
    with pytest.raises(hl.ConfigurationError, match=r"loss was a str; expected a function of"):
        profile(model, "g", lambda net, batch: net(batch).sum(), [torch.randn(4, 3)])


def test_no_batches_and_unknown_inputs_are_refused() -> None:
    model = hl.hypernetize(mlp(), {"scale": hl.Uniform(0.0, 1.0)})
    with pytest.raises(hl.ConfigurationError, match="batches was empty; expected at least one"):
        hl.gradient_profile(model, fits, [])
    with pytest.raises(hl.ConfigurationError, match="Did you mean 'scale'"):
        hl.gradient_profile(model, fits, [], "scal")


# --- verdicts -----------------------------------------------------------------------


def wide(**switches: Any) -> hl.HyperModel:
    primary = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 10))
    return hl.hypernetize(primary, {"g": hl.Uniform(0.0, 1.0)}, init="fan_out", **switches)


def exaggerated(model: hl.HyperModel, factor: float) -> hl.HyperModel:
    """The same with a head so large that the predicted change outgrows theta0."""
    with torch.no_grad():
        model.hypernet.head.weight.mul_(factor)
    return model


def test_the_verdict_says_what_the_model_lacks() -> None:
    classical = hl.scale_profile(wide(encoding=None, residual=False)).verdict
    assert "follows the magnitude of 'g': the proportionality of section 3" in classical
    assert classical.endswith("Build the model with encoding=hl.CosSin() and residual=True.")
    raw = hl.scale_profile(exaggerated(wide(encoding=None), 8.0)).verdict
    assert raw.endswith("Build the model with encoding=hl.CosSin().")
    assert hl.scale_profile(wide()).verdict == (
        "The scale of the predicted weights is steady along 'g' (variation below 20 %): nothing to "
        "change."
    )


def moved_in_part(model: hl.HyperModel) -> hl.HyperModel:
    """A head that reads the cosine alone, so that the scale follows gamma though its code's
    norm does not."""
    with torch.no_grad():
        model.hypernet.head.weight[:, 1] = 0.0
    return model


def test_the_verdict_knows_an_encoding_and_a_residual_that_are_there() -> None:
    bare = moved_in_part(wide(residual=False, hidden=()))
    assert hl.scale_profile(bare).verdict.endswith("Build the model with residual=True.")
    mip = exaggerated(moved_in_part(wide(hidden=())), 8.0)
    verdict = hl.scale_profile(mip).verdict
    assert "varies along 'g' by" in verdict
    assert "proportionality" not in verdict
    assert "init='relative' or init='zero', unless the model is trained" in verdict
    assert "CosSin" not in verdict
    assert "residual" not in verdict


def test_a_model_that_diverged_is_told_so() -> None:
    model = exaggerated(wide(), math.nan)
    assert hl.scale_profile(model).verdict == (
        "The scale of the predicted weights is not finite everywhere along 'g': the model diverged."
    )


@pytest.mark.parametrize("seed", range(3))
def test_the_verdict_on_gradients_tells_the_formulations_apart(seed: int) -> None:
    """As in figure 3c, at initialisation."""

    def profile(**switches: Any) -> hl.GradientProfile:
        torch.manual_seed(seed)
        primary = nn.Sequential(
            nn.Conv2d(1, 8, 3),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(8, 16, 3),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(16 * 121, 10),
        )
        model = hl.hypernetize(primary, {"g": hl.LogUniform(1e-4, 1.0)}, **switches)
        batches = [(torch.randn(64, 1, 28, 28), torch.randint(10, (64,))) for _ in range(2)]
        return hl.gradient_profile(
            model,
            lambda net, batch: F.cross_entropy(net(batch[0]), batch[1]),
            batches,
            points=7,
        )

    classical, mip = profile(encoding=None, residual=False), profile(init="relative")
    assert "gradient by the predicted weights follows the magnitude of 'g'" in classical.verdict
    assert classical.verdict.endswith("encoding=hl.CosSin() and residual=True.")
    assert mip.verdict.startswith("The gradient by the predicted weights is steady along 'g' (")
    assert mip.verdict.endswith("): nothing to change.")
    assert mip.variation < 0.1 * classical.variation


def test_variation_below_the_noise_of_the_batches_is_no_problem() -> None:
    model = wide(encoding=None, residual=False)

    def loss(net: nn.Module, weight: float) -> Tensor:
        return weight * sum(p.square().sum() for p in (net[0].weight, net[2].weight))

    steady = hl.gradient_profile(model, loss, [1.0, 1.0])  # proportional to gamma: 0.6
    assert "follows the magnitude" in steady.verdict
    noisy = hl.gradient_profile(model, loss, [1.0, 1e-3])
    assert "steady along 'g' (variation below " in noisy.verdict
    assert "twice that across the batches): nothing to change." in noisy.verdict
    assert "twice" not in hl.gradient_profile(wide(), loss, [1.0, 1.0]).verdict
    assert noisy.variation == pytest.approx(steady.variation)
    assert "correlation" in str(steady)
    assert "correlation" not in str(noisy)


def test_no_correlation_is_shown_of_what_hardly_varies() -> None:
    # One direction that rises evenly, by a tenth: a straight line has a correlation of 1.
    model = hl.hypernetize(mlp(), {"g": hl.Uniform(0.0, 1.0)}, init="zero")
    theta0 = {name: t.detach() for name, t in model.theta0.items()}
    model.predict = lambda g: {n: t * (1.0 + 0.1 * float(g)) for n, t in theta0.items()}
    profile = hl.scale_profile(model)
    assert profile.correlation > 0.99
    assert "steady along 'g'" in profile.verdict
    assert str(profile).startswith("g: predicted weights have std ")
    assert str(profile).endswith(f"(variation 3 %)\n{profile.verdict}")
    model.predict = lambda g: {n: t * (1.0 + 3.0 * float(g)) for n, t in theta0.items()}
    steep = hl.scale_profile(model)
    assert "correlation with the input's magnitude 1.00\n" in str(steep)
    assert "steady" not in steep.verdict
    categories = hl.hypernetize(mlp(), {"g": hl.Categorical(3)}, init="zero")
    categories.predict = lambda g: {n: t * (1.0 + 3.0 * float(g)) for n, t in theta0.items()}
    assert "nan" not in str(hl.scale_profile(categories))


# --- figures ------------------------------------------------------------------------


def profiles(space: hl.Input) -> list[hl.ScaleProfile | hl.GradientProfile]:
    model = hl.hypernetize(mlp(), {"g": space})
    batches = [(torch.randn(8, 3), torch.randn(8, 2)) for _ in range(3)]
    return [hl.scale_profile(model, points=5), hl.gradient_profile(model, fits, batches, points=5)]


@pytest.mark.parametrize(
    ("space", "scale", "label"),
    [
        (hl.Uniform(0.0, 1.0), "linear", "g"),
        (hl.LogUniform(1e-4, 1.0), "log", "g"),
        (hl.Normal(3), "linear", "norm of g"),
        (hl.Categorical(5), "linear", "g"),
    ],
    ids=repr,
)
def test_profiles_are_drawn(space: hl.Input, scale: str, label: str) -> None:
    matplotlib = pytest.importorskip("matplotlib", reason="the extra 'lab' is not installed")
    matplotlib.use("Agg")
    from matplotlib import pyplot

    for profile in profiles(space):
        ax = profile.plot()
        (line,) = ax.lines
        position = profile.gamma if profile.gamma.ndim == 1 else profile.magnitude
        assert line.get_xdata().tolist() == position.tolist()
        size = profile.std if isinstance(profile, hl.ScaleProfile) else profile.norm.mean(dim=1)
        assert line.get_ydata().tolist() == size.tolist()
        assert (ax.get_xscale(), ax.get_xlabel()) == (scale, label)
        assert "predicted weights" in ax.get_ylabel()
        assert len(ax.collections) == isinstance(profile, hl.GradientProfile)  # the spread
        assert profile.plot(ax) is ax
        assert len(ax.lines) == 2
        pyplot.close(ax.figure)


def test_without_matplotlib_plot_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for profile in profiles(hl.Uniform(0.0, 1.0)):
        with pytest.raises(hl.MissingExtraError, match="Install it: pip install matplotlib"):
            profile.plot()


def test_importing_the_library_imports_no_matplotlib() -> None:
    code = "import sys, hyperlight; assert 'matplotlib' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_head_that_scales_theta0_has_a_verdict() -> None:
    space = {"g": hl.Uniform(0.0, 1.0)}
    model = hl.hypernetize(
        nn.Linear(4, 3), space, head=hl.ChannelScale(), encoding=None, init=hl.Relative(9.0)
    )
    profile = hl.scale_profile(model)
    assert "Build the model with encoding=" in profile.verdict


# --- over data ------------------------------------------------------------------------------


def test_the_spread_is_the_deviation_of_the_weights_over_their_size() -> None:
    model = hl.hypernetize(mlp(), {"z": hl.Vector(4)}).double()
    z = torch.randn(12, 4, dtype=torch.float64)
    profile = hl.scale_profile(model, values={"z": z})
    with torch.no_grad():
        rows = torch.cat([t.flatten(1) for t in model.predict(z=z).values()], dim=1)
    expected = (rows.var(dim=0, correction=0).sum() / rows.square().mean(dim=0).sum()).sqrt()
    assert profile.spread == pytest.approx(float(expected), rel=1e-9)
    assert profile.std.shape == (12,)
    assert torch.equal(profile.gamma, z[z.norm(dim=1).argsort()])
    flat = hl.hypernetize(mlp(), {"z": hl.Vector(4)}, init="zero")
    assert hl.scale_profile(flat).spread == 0.0


def embeddings(count: int = 100) -> Tensor:
    """As an untrained network gives them: small, and not what the space was declared for."""
    return 0.05 * torch.randn(count, 64)


def test_the_profile_says_that_data_condition_next_to_nothing() -> None:
    data = embeddings()
    for settings_ in ({}, {"encoding": hl.CosSin(per_input=True)}):
        model = hl.hypernetize(mlp(), {"z": hl.Vector(64), "g": hl.Uniform()}, **settings_)
        profile = hl.scale_profile(model, values={"z": data})
        assert profile.spread < 0.005
        assert re.search(r"'z' conditions next to nothing: .* by 0\.00\d+ of th", profile.verdict)
        assert "spread by 0.05, and it was declared as Vector(shape=(64,)" in profile.verdict
        assert "calibrate_on={'z': batch}" in profile.verdict
        calibrated = hl.hypernetize(
            mlp(), {"z": hl.Vector(64), "g": hl.Uniform()}, calibrate_on={"z": data}, **settings_
        )
        again = hl.scale_profile(calibrated, values={"z": embeddings()})
        assert again.spread > 0.01
        assert "conditions next to nothing" not in again.verdict
    level = hl.hypernetize(mlp(), {"g": hl.Uniform(0.0, 100.0)})
    verdict = hl.scale_profile(level, values={"g": torch.rand(9)}).verdict
    assert "They fill a small part of Uniform(low=0.0, high=100.0" in verdict


def test_a_model_that_starts_at_zero_is_not_blamed_on_its_data() -> None:
    model = hl.hypernetize(mlp(), {"z": hl.Vector(64)}, init="zero")
    verdict = hl.scale_profile(model, values={"z": embeddings()}).verdict
    assert verdict.endswith("Over the given values the weights move by 0 of their size.")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"y": torch.rand(3)}, "'y' is not an input of this model; its inputs are 'z', 'g'"),
        ({"z": torch.zeros(4)}, "'z' has batch shape () in values; expected (N,), of 2 or more"),
        ({"z": torch.zeros(1, 4)}, "'z' has batch shape (1,) in values"),
        ({"z": torch.zeros(9, 5)}, "'z' has shape (9, 5); expected (4,)"),
        ({"z": torch.zeros(9, 4), "g": torch.rand(9)}, "say which one to vary"),
    ],
)
def test_data_that_do_not_fit_are_refused(values: dict[str, Tensor], words: str) -> None:
    model = hl.hypernetize(mlp(), {"z": hl.Vector(4), "g": hl.Uniform()})
    with pytest.raises(hl.HyperLightError) as error:
        hl.scale_profile(model, values=values)
    assert words in str(error.value)
