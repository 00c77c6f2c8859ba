r"""
A family of differential equations
==================================

A physics-informed network solves one equation: its loss is what is left of the equation at random
points. Here one network solves :math:`u'' = a^2 (u - 1)` with :math:`u(0) = u(1) = 0` for every
coefficient :math:`a` from 1 to 10: diffusion against a reaction. The alternative is one plain
network that reads :math:`a` as a second coordinate. The exact solution is known.
"""

import matplotlib.pyplot as plt
import torch
from torch import nn

import hyperlight as hl

# %%
# Two derivatives by autograd, as for a plain network: every row has weights of its own.
torch.manual_seed(0)
coefficients = hl.LogUniform(1.0, 10.0)


def network(inputs):
    hidden = nn.Linear(inputs, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh()
    return nn.Sequential(*hidden, nn.Linear(32, 1))


def residual(run, a, x):
    u = run(x, a) * x * (1 - x)  # zero at both ends
    (slope,) = torch.autograd.grad(u.sum(), x, create_graph=True)
    (curvature,) = torch.autograd.grad(slope.sum(), x, create_graph=True)
    return (curvature - a[:, None, None] ** 2 * (u - 1)) / a[:, None, None]


def fit(run, parameters, steps=800):
    optimizer = torch.optim.Adam(parameters, lr=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        a, x = coefficients.sample(8), torch.rand(8, 32, 1, requires_grad=True)
        optimizer.zero_grad()
        residual(run, a, x).square().mean().backward()
        optimizer.step()
        schedule.step()


# %%
# The family, and the network with two coordinates.
model = hl.hypernetize(network(1), inputs={"a": coefficients})
plain = network(2)


def concatenated(x, a):
    second = 2 * coefficients.normalize(a)[:, None, None] - 1  # the logarithm, from -1 to 1
    return plain(torch.cat([x, second.expand_as(x)], dim=-1))


def family(x, a):
    return model(x, a=a)


fit(family, hl.parameter_groups(model, lr=1e-2))
fit(concatenated, plain.parameters())

# %%
# Solutions for four coefficients, and the largest error of each. As the weights depend on the
# coefficient, ``hl.tune`` finds the one that explains a measured curve.
x, a = torch.linspace(0, 1, 101)[:, None], torch.tensor([1.0, 2.0, 5.0, 10.0])
exact = 1 - torch.cosh(a[:, None, None] * (x - 0.5)) / torch.cosh(a[:, None, None] / 2)
with torch.no_grad():
    runs = {"family": family, "concatenated": concatenated}
    curves = {name: run(x.expand(4, -1, 1), a) * x * (1 - x) for name, run in runs.items()}
error = {name: (u - exact).abs().amax((1, 2)).tolist() for name, u in curves.items()}
measured = 1 - torch.cosh(7 * (x - 0.5)) / torch.cosh(torch.tensor(3.5))
tuned = hl.tune(model, lambda net: (net(x) * x * (1 - x) - measured).square().mean())
found_coefficient = tuned.inputs["a"].item()
plt.plot(x, exact[:, :, 0].T, "0.7", lw=4)
plt.plot(x, curves["family"][:, :, 0].T, label=[f"a = {value:g}" for value in a])
plt.gca().set(xlabel="x", ylabel="u (grey: exact)")
plt.legend()
plt.show()
