"""
The cost of a mistake: choose it after training
===============================================

How bad is it to miss a one? The answer is a weight in the loss, and may change after training. Here
one linear classifier learns all weights. It is compared with a classifier for each, and with what
needs no training: one classifier whose score is raised by the logarithm of the weight. For a linear
classifier that is not the best; for flexible ones it is hard to beat.
"""

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

import hyperlight as hl

# %%
# Coarse images, 4x4, and whether each is a one.
torch.manual_seed(0)
pixels, digit = map(torch.tensor, load_digits(return_X_y=True))
x = F.avg_pool2d(pixels.float().reshape(-1, 1, 8, 8), 2).flatten(1)
x = (x - x.mean(0)) / (x.std(0) + 0.01)
y = (digit == 1).float()[:, None]
train, test = slice(1300), slice(1300, None)


def objective(score, cost):
    """Weigh ones by their cost: scores ``(..., images, 1)``, costs ``(...)``."""
    weight = 1 + (cost[..., None, None] - 1) * y[train]
    loss = F.binary_cross_entropy_with_logits(score, y[train].expand_as(score), reduction="none")
    return (weight * loss).mean() / weight.mean()


def fit(run, parameters, draw, steps=1000):
    optimizer = torch.optim.Adam(parameters, lr=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        cost = draw()
        optimizer.zero_grad()
        objective(run(x[train], cost), cost).backward()
        optimizer.step()
        schedule.step()


# %%
# In every step, the family sees the images under eight costs.
costs = hl.LogUniform(1.0, 100.0, endpoints=0.1)
model = hl.hypernetize(nn.Linear(16, 1), inputs={"cost": costs})
groups = hl.parameter_groups(model, lr=0.1)
fit(lambda x, cost: model.sweep(x, cost=cost), groups, lambda: costs.sample(8))
separate = {cost: nn.Linear(16, 1) for cost in (1.0, 3.0, 10.0, 30.0, 100.0)}
for cost, net in separate.items():
    fit(lambda x, _, net=net: net(x), net.parameters(), lambda cost=cost: torch.tensor(cost))


# %%
# The classifier's weights at three costs, and what the mistakes on test images cost.
def price(score, cost):
    weight = 1 + (cost - 1) * y[test]
    return (weight * ((score > 0) != (y[test] > 0))).mean().item() / weight.mean().item()


prices = {"one family": {}, "a network for each": {}, "raised score": {}}
for cost, net in separate.items():
    raised = separate[1.0](x[test]) + torch.tensor(cost).log()
    found = model.bind(cost=cost)(x[test]), net(x[test]), raised
    for name, score in zip(prices, found, strict=True):
        prices[name][cost] = price(score, cost)
_, axes = plt.subplots(1, 4, figsize=(13, 3.4), layout="constrained")
for axis, cost in zip(axes[:3], (1.0, 10.0, 100.0), strict=True):
    axis.imshow(model.at(cost=cost).weight.detach().reshape(4, 4), cmap="gray")
    axis.set_title(f"cost {cost:g}")
for (name, found), style in zip(prices.items(), ("o-", "kx", "--"), strict=True):
    axes[3].semilogx(found.keys(), found.values(), style, label=name)
axes[3].set(title="price of all mistakes", xlabel="cost of missing a one")
axes[3].legend()
plt.show()
