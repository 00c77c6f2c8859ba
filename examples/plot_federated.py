"""
Federated learning: a network for every client
==============================================

The server makes a network for each of twelve clients, who name the digits in three ways. They train
it on 40 images, and send back how its weights changed (`Shamsian et al. 2021
<https://arxiv.org/abs/2103.04628>`_). It is compared with the mean of all networks and with none.
"""

import copy

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

import hyperlight as hl

# %%
# Images and labels of the clients, and what happens there; client 12 comes later.
torch.manual_seed(0)
pixels, digit = map(torch.tensor, load_digits(return_X_y=True))
x, own, test = pixels.float() / 16, torch.arange(520).reshape(13, 40), slice(600, None)
labels = [digit * (1, 3, 7)[client % 3] % 10 for client in range(13)]


def network():
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


def trained(client, net, steps=10):
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(net(x[own[client]]), labels[client][own[client]]).backward()
        optimizer.step()
    return net


def accuracy(nets):
    right = [(net(x[test]).argmax(-1) == labels[c][test]).float() for c, net in nets.items()]
    return torch.stack(right).mean().item()


# %%
# At the server, the change of the weights takes the place of their gradient.
def visit(client, optimizer):
    theta, new = model.predict(client=client), trained(client, model.at(client=client))
    optimizer.zero_grad()
    changes = [weight.detach() - new.get_parameter(name) for name, weight in theta.items()]
    torch.autograd.backward(list(theta.values()), changes)
    optimizer.step()


model = hl.hypernetize(network(), inputs={"client": hl.Categorical(12)})
optimizer = torch.optim.Adam(hl.parameter_groups(model, lr=3e-3))
mean, history = network(), {"hypernetwork": [], "one network": []}
for _ in range(40):
    for client in torch.randperm(12).tolist():
        visit(client, optimizer)
    new = [trained(client, copy.deepcopy(mean)).state_dict() for client in range(12)]
    mean.load_state_dict({name: sum(net[name] for net in new) / 12 for name in new[0]})
    history["hypernetwork"].append(accuracy({c: model.at(client=c) for c in range(12)}))
    history["one network"].append(accuracy(dict.fromkeys(range(12), mean)))
history["every client alone"] = [accuracy({c: trained(c, network(), 200) for c in range(12)})] * 40

# %%
# The new client trains its embedding alone: it finds out in which way it names the digits.
optimizer = torch.optim.Adam([model.extend("client")], lr=0.05)
for _ in range(50):
    visit(12, optimizer)
new_client = accuracy({12: model.at(client=12)})
new_client_alone = accuracy({12: trained(12, network(), steps=200)})
for name, found in history.items():
    plt.plot(found, label=name)
plt.plot(40, new_client, "k*", markersize=14, label="a new client")
plt.gca().set(xlabel="visits to every client", ylabel="mean test accuracy")
plt.legend()
plt.show()
