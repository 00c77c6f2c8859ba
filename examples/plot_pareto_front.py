"""
A Pareto front: losses that are in each other's way
===================================================

An autoencoder has two numbers for an image, too few for all of it. So what it spends on the upper
half is missing for the lower half. The knob is a ray: the weights of the two losses. One network
learns the whole front (`Navon et al. 2021 <https://arxiv.org/abs/2010.04104>`_). It is compared
with networks that are trained for one ray each, with as many steps.
"""

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import nn

import hyperlight as hl

# %%
# The two losses of a batch: the error in the upper and in the lower half, ``(..., 2)``.
torch.manual_seed(0)
images = torch.tensor(load_digits().data, dtype=torch.float32) / 16
train, test = images[:1300], images[1300:]


def network():
    encoder = nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2)
    return nn.Sequential(*encoder, nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 64))


def losses(picture, x):
    return (picture - x).square().unflatten(-1, (2, 32)).sum(-1).mean(-2)


def fit(run, parameters, draw, steps=1000):
    optimizer = torch.optim.Adam(parameters, lr=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        x, ray = train[torch.randint(len(train), (64,))], draw()
        optimizer.zero_grad()
        (ray * losses(run(x, ray), x)).sum(-1).mean().backward()
        optimizer.step()
        schedule.step()


# %%
# In every step, the family sees the same images under eight rays.
model = hl.hypernetize(network(), inputs={"ray": hl.Simplex(2, alpha=0.5)})
groups = hl.parameter_groups(model, lr=1e-2)
fit(lambda x, ray: model.sweep(x, ray=ray), groups, lambda: model.sample(8)["ray"])
upper = torch.linspace(0.02, 0.98, 13)
rays = torch.stack([upper, 1 - upper], dim=-1)
separate = [network() for _ in rays[::3]]
for ray, net in zip(rays[::3], separate, strict=True):
    fit(lambda x, _, net=net: net(x), net.parameters(), lambda ray=ray: ray)

# %%
# The front, which stops short of the networks at its ends; and how its ends and its middle draw
# four test images.
with torch.no_grad():
    pictures = model.sweep(test, ray=rays)
    front = losses(pictures, test)
    alone = torch.stack([losses(net(test), test) for net in separate])
loss_of_family = (rays * front).sum(-1)[::3].tolist()
loss_alone = (rays[::3] * alone).sum(-1).tolist()
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
left.plot(*front.T, "o-", label="one family")
left.plot(*alone.T, "kx", label="a network for each ray")
left.set(xlabel="error in the upper half", ylabel="error in the lower half")
left.legend()
shown = torch.cat([test[None, :4], pictures[[12, 6, 0], :4]]).unflatten(-1, (8, 8))
shown = nn.functional.pad(shown, [1] * 4, value=1.0).transpose(1, 2).reshape(40, 40)
right.imshow(shown, cmap="gray", vmin=0, vmax=1)
names = ["image", "upper half", "both", "lower half"]
right.set(xticks=[], yticks=[5, 15, 25, 35], yticklabels=names)
plt.show()
