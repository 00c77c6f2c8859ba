"""
Continual learning: tasks that come one after the other
=======================================================

Five tasks tell two digits apart each, and the data of a task are gone once the next one begins. The
knob is the task. Every new task is a new category, and a regulariser keeps what is predicted for
the tasks before (`von Oswald et al. 2020 <https://arxiv.org/abs/1906.00695>`_). It is compared with
the same model without the regulariser, with one plain network, and with a network for each task.
"""

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

import hyperlight as hl

# %%
# Zero or one, two or three, and so on: the label is 0 or 1.
torch.manual_seed(0)
pixels, digit = map(torch.tensor, load_digits(return_X_y=True))
images = pixels.float() / 16
parts = [torch.nonzero(digit // 2 == task)[:, 0] for task in range(5)]
train, test = [part[:250] for part in parts], [part[250:] for part in parts]


def network():
    return nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 2))


def fit(run, parameters, task, keep=None, steps=150):
    optimizer = torch.optim.Adam(parameters, lr=1e-2)
    for _ in range(steps):
        batch = train[task][torch.randint(250, (32,))]
        loss = F.cross_entropy(run(images[batch]), digit[batch] % 2)
        optimizer.zero_grad()
        (loss if keep is None else loss + 0.1 * keep()).backward()
        optimizer.step()


def accuracy(nets):
    found = [net(images[i]).argmax(-1) == digit[i] % 2 for net, i in zip(nets, test, strict=False)]
    return [right.double().mean().item() for right in found]


# %%
# The model begins with one task, and is extended before each of the others.
def learn(regularised):
    model = hl.hypernetize(network(), {"task": hl.Categorical(1, features=8)})
    found = []
    for task in range(5):
        keep = None
        if task:
            model.extend("task")
            keep = hl.OutputRegularizer(model, {"task": torch.arange(task)})
        groups = hl.parameter_groups(model, lr=1e-2)
        fit(lambda x, task=task: model(x, task=task), groups, task, keep if regularised else None)
        found.append(accuracy([model.at(task=old) for old in range(task + 1)]))
    return found


history = {"with the regulariser": learn(True), "without it": learn(False), "one network": []}
plain, separate = network(), [network() for _ in range(5)]
for task, net in enumerate(separate):
    fit(net, net.parameters(), task)
    fit(plain, plain.parameters(), task)
    history["one network"].append(accuracy([plain] * (task + 1)))

# %%
# The mean accuracy on all tasks so far; dotted, that of a network for each task.
at_end = {name: sum(found[-1]) / 5 for name, found in history.items()}
at_end["a network for each"] = sum(accuracy(separate)) / 5
for name, found in history.items():
    plt.plot(range(1, 6), [sum(row) / len(row) for row in found], "o-", label=name)
plt.axhline(at_end["a network for each"], color="0.5", ls=":")
plt.xlabel("tasks learned")
plt.ylabel("mean accuracy on them")
plt.legend()
plt.show()
