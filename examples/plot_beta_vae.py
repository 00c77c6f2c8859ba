"""
Beta-VAE: every trade-off of rate against distortion
====================================================

A variational autoencoder pays for the information in its code with the weight beta. A small beta
gives sharp images and long codes, a large one blurred images and short codes. Here one network
learns all values of beta. It is compared with three networks, each trained for one beta with the
same number of steps.
"""

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import nn

import hyperlight as hl

# %%
# An ordinary network. It returns the distortion and the rate of every image, and the picture.
torch.manual_seed(0)
images = torch.tensor(load_digits().data, dtype=torch.float32) / 16
train, test = images[:1300], images[1300:]


class VAE(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 16))
        self.decoder = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64))

    def forward(self, x):
        mean, log_variance = self.encoder(x).chunk(2, dim=-1)
        picture = self.decoder(mean + (log_variance / 2).exp() * torch.randn_like(mean))
        rate = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(-1)
        return (picture - x).square().sum(-1), rate, picture


def objective(distortion, rate, beta):
    return ((distortion + beta * rate) / (1 + beta)).mean()


def fit(run, parameters, draw, steps=800):
    optimizer = torch.optim.Adam(parameters, lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        x, beta = train[torch.randint(len(train), (64,))], draw()
        distortion, rate, _ = run(x, beta)
        optimizer.zero_grad()
        objective(distortion, rate, beta).backward()
        optimizer.step()
        schedule.step()


# %%
# In every step, the family sees the same images under eight values of beta, ``(8, 1)``.
betas = hl.LogUniform(0.01, 1.0, endpoints=0.1)
model = hl.hypernetize(VAE(), inputs={"beta": betas})
groups = hl.parameter_groups(model, lr=3e-3)
fit(lambda x, beta: model.sweep(x, beta=beta[:, 0]), groups, lambda: betas.sample((8, 1)))
separate = {beta: VAE() for beta in (0.01, 0.1, 1.0)}
for beta, net in separate.items():
    fit(lambda x, _, net=net: net(x), net.parameters(), lambda beta=beta: beta)

# %%
# The front of the family, which stops short of the networks at its ends; and images along it.
with torch.no_grad():
    distortion, rate, pictures = model.sweep(test, beta=betas.grid(13))
    found = {b: (model(test, beta=b)[:2], net(test)[:2]) for b, net in separate.items()}
loss_of_family = {b: objective(*parts, b).item() for b, (parts, _) in found.items()}
loss_alone = {b: objective(*parts, b).item() for b, (_, parts) in found.items()}
alone = torch.tensor([[part.mean() for part in parts] for _, parts in found.values()])
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
left.plot(rate.mean(1), distortion.mean(1), "o-", label="one family, 13 values of beta")
left.plot(alone[:, 1], alone[:, 0], "kx", label="a network for each")
left.set(xlabel="rate (nats)", ylabel="distortion (squared error)")
left.legend()
shown = nn.functional.pad(pictures[::3, :3].unflatten(-1, (8, 8)), [1] * 4, value=1.0)
right.imshow(shown.permute(1, 2, 0, 3).reshape(30, 50), cmap="gray", vmin=0, vmax=1)
right.set(title="beta from 0.01 (left) to 1 (right)", xticks=[], yticks=[])
plt.show()
