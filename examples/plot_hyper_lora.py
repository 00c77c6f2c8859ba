"""
Hyper-LoRA: contradictory tasks in one batch
============================================

A pretrained transformer names digits. Four tasks want different answers to the same image, and a
hypernetwork predicts the low-rank adapter of `peft <https://huggingface.co/docs/peft>`_ for each.
It is compared with an adapter for each, with one for all, and with FiLM, which scales features.
"""

import copy
import tempfile

import matplotlib.pyplot as plt
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from sklearn.datasets import load_digits
from torch.nn import functional as F
from transformers import ViTConfig, ViTForImageClassification

import hyperlight as hl

# %%
# A small vision transformer is trained on the first task.
torch.manual_seed(0)
pixels, digit = map(torch.tensor, load_digits(return_X_y=True))
images = (pixels.float() / 8 - 1).reshape(-1, 1, 8, 8)
answers = torch.stack([digit, (digit + 1) % 10, 9 - digit, 3 * digit % 10])  # (tasks, images)


def fit(run, parameters, tasks, steps=200):
    optimizer = torch.optim.AdamW(parameters, lr=4e-3)
    for _ in range(steps):
        i, task = torch.randint(1300, (64,)), tasks[torch.randint(len(tasks), (64,))]
        optimizer.zero_grad()
        F.cross_entropy(run(images[i], task).logits, answers[task, i]).backward()
        optimizer.step()


size = {"image_size": 8, "patch_size": 4, "num_channels": 1, "hidden_size": 32}
size |= {"num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
base = ViTForImageClassification(ViTConfig(**size, num_labels=10))
fit(lambda x, _: base(x), base.parameters(), torch.tensor([0]))


def adapted():
    return get_peft_model(copy.deepcopy(base), LoraConfig(r=4, target_modules="all-linear"))


# %%
# The hypernetwork predicts the adapter and leaves everything else as it is. So does FiLM.
tasks, space = torch.arange(4), {"task": hl.Categorical(4)}
model = hl.hypernetize(adapted().requires_grad_(False), space, "*lora_*")
film = hl.hypernetize(copy.deepcopy(base).requires_grad_(False), space, head=hl.ChannelScale())
for net in (model, film):
    fit(lambda x, task, net=net: net(x, task=task), hl.parameter_groups(net, lr=4e-3), tasks)
shared, *single = (adapted() for _ in range(5))
for net, own in zip([shared, *single], [tasks, *tasks[:, None]], strict=True):
    fit(lambda x, _, net=net: net(x), net.parameters(), own)


# %%
# The adapter for a task can be exported, and peft loads it into the pretrained network.
def accuracies(nets):
    found = [net.eval()(images[1300:]).logits.argmax(-1) for net in nets]
    return (torch.stack(found) == answers[:, 1300:]).float().mean(1).tolist()


with tempfile.TemporaryDirectory() as folder:
    model.at(task=2).save_pretrained(folder)
    loaded = PeftModel.from_pretrained(copy.deepcopy(base), folder)
nets = {"one adapter for all": [shared] * 4, "an adapter for each": single}
nets |= {"FiLM": [film.at(task=i) for i in tasks], "hyper-LoRA": [model.at(task=i) for i in tasks]}
accuracy = {name: accuracies(found) for name, found in nets.items()}
accuracy_loaded = accuracies([loaded] * 4)[2]
for place, (name, values) in enumerate(accuracy.items()):
    plt.bar(tasks + 0.2 * place - 0.3, values, width=0.2, label=name)
names = ["the digit", "plus one", "nine minus", "times three"]
plt.gca().set(xticks=tasks, xticklabels=names, ylabel="test accuracy")
plt.legend(loc="lower right")
plt.show()
