"""
From an image to an implicit network
====================================

An implicit network maps coordinates to grey values, at any resolution. It stores one image (SIREN,
`Sitzmann et al. 2020 <https://arxiv.org/abs/2006.09661>`_). Here an image is the knob: an encoder
reads it, and the hypernetwork predicts the weights of its implicit network. The alternative gives
what the same encoder finds to one wider network, beside the coordinates.
"""

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import nn

import hyperlight as hl

# %%
# The networks: sine layers from two coordinates to a grey value, and an ordinary encoder.
torch.manual_seed(0)
train, test = torch.tensor(load_digits().images[:, None] / 16).float().split([1300, 497])


class Sine(nn.Module):
    def forward(self, x):
        return x.sin()


def siren(inputs, width):
    hidden = nn.Linear(inputs, width), Sine(), nn.Linear(width, width), Sine()
    return nn.Sequential(*hidden, nn.Linear(width, 1))


def encoder():
    return nn.Sequential(nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(576, 32))


def coordinates(size):
    line = (torch.arange(size) + 0.5) / size
    return 10 * torch.cartesian_prod(line, line) - 5


def fit(run, parameters, steps=800):
    optimizer = torch.optim.Adam(parameters, lr=3e-3)
    for _ in range(steps):
        batch = train[torch.randint(len(train), (32,))]
        optimizer.zero_grad()
        (run(batch, 8) - batch).square().mean().backward()
        optimizer.step()


# %%
# The encoder is a part of the model. The examples say how what it finds is spread.
model = hl.hypernetize(siren(2, 24), {"image": hl.Encoded(encoder(), 32, examples=train[:200])})
reader, wide = encoder(), siren(2 + 32, 64)


def predicted(batch, size):  # the same coordinates for the weights of every image
    return model.sweep(coordinates(size), image=batch).reshape(-1, 1, size, size)


def concatenated(batch, size):
    xy = coordinates(size).expand(len(batch), -1, 2)
    found = reader(batch)[:, None].expand(-1, size**2, -1)
    return wide(torch.cat([xy, found], dim=-1)).reshape(-1, 1, size, size)


fit(predicted, hl.parameter_groups(model, lr=3e-3))
fit(concatenated, [*reader.parameters(), *wide.parameters()])

# %%
# Test images, and what their networks draw, in two sizes. The alternative is as exact here.
with torch.no_grad():
    runs = {"predicted": predicted, "concatenated": concatenated, "mean": lambda *_: train.mean(0)}
    error = {name: (run(test, 8) - test).square().mean().item() for name, run in runs.items()}
    rows = {"test": test[:6], "8 x 8": predicted(test[:6], 8), "64 x 64": predicted(test[:6], 64)}
for place, (name, row) in enumerate(rows.items(), start=1):
    plt.subplot(3, 1, place, ylabel=name, xticks=[], yticks=[])
    plt.imshow(torch.cat([*row[:, 0]], dim=1), cmap="gray")
plt.show()
