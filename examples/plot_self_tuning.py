"""
Hyperparameters that tune themselves
====================================

One network is trained under random values of dropout and weight decay. Then ``hl.tune`` descends on
the validation loss by the two (`MacKay et al. 2019 <https://arxiv.org/abs/1903.03088>`_). It is
compared with a search: one of 16 plain networks.
"""

from itertools import product

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import nn

import hyperlight as hl

# %%
# Few images, and a third of the labels is drawn: without regularisation a network learns those.
torch.manual_seed(0)
pixels, y = map(torch.tensor, load_digits(return_X_y=True))
x, train, valid, test = pixels.float() / 16, slice(200), slice(200, 600), slice(600, None)
given = torch.where(torch.rand(200) < 0.33, torch.randint(10, (200,)), y[train])


class Network(nn.Sequential):
    def forward(self, x, rate=0.0):
        hidden = self[0](x).relu()  # dropout by hand: nn.Dropout takes no tensor as its rate
        return self[1](hidden * (torch.rand_like(hidden) >= rate) / (1 - rate))


def fit(draw, parameters, steps):
    optimizer = torch.optim.Adam(parameters, lr=3e-3)
    for _ in range(steps):
        net, weights, dropout, decay = draw()
        loss = nn.functional.cross_entropy(net(x[train], dropout), given)
        optimizer.zero_grad()
        (loss + decay * sum(w.square().sum() for w in weights)).backward()
        optimizer.step()


def draw():
    gamma = model.sample()
    theta = model.predict(**gamma)  # bound by hand, as the decay needs the weights
    return hl.bind(model.primary, theta), theta.values(), gamma["dropout"], gamma["decay"]


# %%
# One family, and 16 networks.
spaces = {"dropout": hl.Uniform(0.0, 0.9), "decay": hl.LogUniform(1e-5, 1e-1)}
model = hl.hypernetize(Network(nn.Linear(64, 128), nn.Linear(128, 10)), inputs=spaces)
fit(draw, hl.parameter_groups(model, lr=3e-3), steps=1000)
tuned = hl.tune(model, lambda net: nn.functional.cross_entropy(net(x[valid]), y[valid]))
dropouts, decays = (0.0, 0.3, 0.6, 0.9), (1e-5, 2e-4, 5e-3, 1e-1)
search = {at: Network(nn.Linear(64, 128), nn.Linear(128, 10)) for at in product(dropouts, decays)}
for at, net in search.items():
    fit(lambda net=net, at=at: (net, net.parameters(), *at), net.parameters(), steps=300)


# %%
# The validation loss of the family, as lines over decay; that of the 16 networks as crosses.
def loss(net, part=valid):
    return nn.functional.cross_entropy(net(x[part]), y[part]).item()


for colour, dropout in enumerate(dropouts):
    family = [loss(model.at(dropout=dropout, decay=decay)) for decay in torch.logspace(-5, -1, 17)]
    plt.semilogx(torch.logspace(-5, -1, 17), family, f"C{colour}", label=f"dropout {dropout}")
    plt.plot(decays, [loss(search[dropout, decay]) for decay in decays], f"C{colour}x")
plt.plot(tuned.inputs["decay"], tuned.loss, "k*", markersize=14, label="hl.tune")
plt.gca().set(xlabel="weight decay", ylabel="validation loss")
plt.legend()
best = min(search.values(), key=loss)
nets = {"tuned": model.at(**tuned.inputs), "search": best, "neither": search[0.0, 1e-5]}
test_loss = {name: loss(net, test) for name, net in nets.items()}
plt.show()
