"""
Registration: one network for every smoothness
==============================================

Registration warps an image to match another one. A weight in the loss says how smooth the warp is.
Here one network learns all weights, as in `HyperMorph <https://arxiv.org/abs/2101.01035>`_. It is
compared with three networks, each trained for one weight; together they have as many steps.
"""

import copy

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch.nn import functional as F

import hyperlight as hl
from hyperlight.lab.primaries import UNet
from hyperlight.lab.registration import total_variation, warp

# %%
# A pair is two images of the same digit. The network warps the first one onto the second.
torch.manual_seed(0)
pixels, labels = map(torch.tensor, load_digits(return_X_y=True))
images = F.interpolate(pixels.float().reshape(-1, 1, 8, 8) / 16, scale_factor=2, mode="bilinear")
train, test = torch.arange(1300), torch.arange(1300, 1797)


def pairs(pool, count):
    first = pool[torch.randint(len(pool), (count,))]
    same = (labels[first, None] == labels[pool]).float()
    return torch.cat([images[first], images[pool[same.multinomial(1)[:, 0]]]], dim=1)


def objective(field, pair, smoothness):
    error = (warp(pair[:, :1], field) - pair[:, 1:]).square().mean()
    return (1 - smoothness) * 20 * error + smoothness * total_variation(field)


def fit(run, parameters, draw, steps):
    optimizer = torch.optim.Adam(parameters, lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        smoothness, pair = draw(), pairs(train, 16)
        optimizer.zero_grad()
        objective(run(pair, smoothness), pair, smoothness).backward()
        optimizer.step()
        schedule.step()


# %%
# The family sees another smoothness at every step. Each of the other networks sees its own alone.
start = UNet(inputs=2, outputs=2, levels=2, channels=12)
start.head.weight.data *= 0.01  # hardly any displacement at first
model = hl.hypernetize(copy.deepcopy(start), {"smoothness": hl.Uniform(0.0, 1.0)})
groups = hl.parameter_groups(model, lr=3e-3)
fit(lambda pair, s: model(pair, smoothness=s), groups, lambda: model.sample()["smoothness"], 600)
separate = {s: copy.deepcopy(start) for s in (0.1, 0.5, 0.9)}
for s, net in separate.items():
    fit(lambda pair, _, net=net: net(pair), net.parameters(), lambda s=s: s, 200)

# %%
# Above, a test image as the family warps it; below, the warped grid, stiffer from left to right.
pair, grid = pairs(test, 400), torch.arange(16.0)
with torch.no_grad():
    fields = {s / 10: model(pair, smoothness=s / 10) for s in range(1, 10)}
    error_of_family = {s: objective(field, pair, s).item() for s, field in fields.items()}
    error_alone = {s: objective(net(pair), pair, s).item() for s, net in separate.items()}
_, axes = plt.subplots(2, 5, figsize=(10, 4.4), subplot_kw={"xticks": [], "yticks": []})
for column, s in zip(axes.T, (0.1, 0.3, 0.5, 0.7, 0.9), strict=True):
    column[0].imshow(warp(pair[:1, :1], fields[s][:1])[0, 0], cmap="gray")
    down, right = fields[s][0] + torch.cartesian_prod(grid, grid).T.reshape(2, 16, 16)
    column[1].plot(right, -down, "C0", right.T, -down.T, "C0", lw=0.7)
    column[0].set_title(f"smoothness {s}")
plt.figure()
plt.plot(error_of_family.keys(), error_of_family.values())
plt.plot(error_alone.keys(), error_alone.values(), "x")
plt.gca().set(xlabel="smoothness", ylabel="loss on test pairs")
plt.legend(["one family", "a network for each"])
plt.show()
