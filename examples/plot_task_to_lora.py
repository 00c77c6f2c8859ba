"""
From the description of a task to an adapter
============================================

A pretrained transformer reads upright digits, and a task is to read them turned by an angle. The
hypernetwork gets a vector that describes the task, and predicts a low-rank adapter with the small
generator of `Text-to-LoRA <https://arxiv.org/abs/2506.06105>`_, tensor by tensor. So it also gives
adapters for tasks that were never trained. It is compared with one adapter for all tasks.
"""

import copy

import matplotlib.pyplot as plt
import torch
from peft import LoraConfig, get_peft_model
from sklearn.datasets import load_digits
from torch.nn import functional as F
from transformers import ViTConfig, ViTForImageClassification

import hyperlight as hl

# %%
# Sixteen tasks, each described by the cosine and the sine of its angle.
torch.manual_seed(0)
pixels, labels = map(torch.tensor, load_digits(return_X_y=True))
images = (pixels.float() / 8 - 1).reshape(-1, 1, 8, 8)
angles = torch.arange(16) * torch.pi / 8
tasks = torch.stack([angles.cos(), angles.sin()], dim=-1)


def turned(x, task):
    cos, sin = task.unbind(-1)
    matrix = torch.stack([cos, -sin, 0 * cos, sin, cos, 0 * cos], dim=-1).reshape(-1, 2, 3)
    grid = F.affine_grid(matrix, x.shape, align_corners=False)
    return F.grid_sample(x, grid, padding_mode="border", align_corners=False)


def fit(run, parameters, tasks, steps):
    optimizer = torch.optim.AdamW(parameters, lr=4e-3)
    for _ in range(steps):
        i, task = torch.randint(1300, (64,)), tasks[torch.randint(len(tasks), (64,))]
        optimizer.zero_grad()
        F.cross_entropy(run(turned(images[i], task), task).logits, labels[i]).backward()
        optimizer.step()


size = {"image_size": 8, "patch_size": 4, "num_channels": 1, "hidden_size": 32}
size |= {"num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
base = ViTForImageClassification(ViTConfig(**size, num_labels=10))
fit(lambda x, _: base(x), base.parameters(), tasks[:1], 250)
lora = get_peft_model(base, LoraConfig(r=4, target_modules="all-linear"))
shared = copy.deepcopy(lora)

# %%
# Both train on every second task. The images of a batch have different ones.
inputs = {"task": hl.Vector(2, scale=0.7)}
model = hl.hypernetize(lora.requires_grad_(False), inputs, "*lora_*", head=hl.PerLayer())
fit(lambda x, task: model(x, task=task), hl.parameter_groups(model, lr=4e-3), tasks[::2], 300)
fit(lambda x, _: shared(x), shared.parameters(), tasks[::2], 300)


# %%
# The accuracy at angles of the training (dotted) and between; a gain of 0 is the base network.
def accuracy(nets):
    views = [turned(images[1300:], task.expand(497, 2)) for task in tasks]
    found = [net.eval()(x).logits.argmax(-1) for net, x in zip(nets, views, strict=True)]
    return (torch.stack(found) == labels[1300:]).float().mean(1).tolist()


accuracies = {
    "no adapter": accuracy([model.at(task=task, gain=0.0) for task in tasks]),
    "one adapter for all": accuracy([shared] * 16),
    "predicted adapters": accuracy([model.at(task=task) for task in tasks]),
}
for name, found in accuracies.items():
    plt.plot(torch.arange(16) * 22.5, found, "o-", label=name)
plt.gca().set(xlabel="angle (degrees)", ylabel="test accuracy", xticks=range(0, 360, 45))
plt.grid(axis="x", ls=":")
plt.legend()
plt.show()
