"""The first losses of a PyTorch run of ShuffleNet V2 0.5x, for weights and batches that anyone can draw again.

    PYTHONPATH=.:tests python tests/golden/make_losses.py        (from the root of the project; needs torch and torchvision)

writes losses.npz next to this file. The run is plain SGD as the papers train: momentum, decay on weights of more than one axis,
label smoothing, and a learning rate that rises and falls, here within STEPS steps.

A random network in training is chaotic: at ten times this rate the difference between float32 and float64 grows from 1e-7 to 1e-2
in twenty steps, in PyTorch itself. Hence a low rate, long filters (the longer, the less a step turns them), a short classifier,
and classes that can be learnt. Then float32 stays within 2e-4 and the losses still fall by 3.4%, 34 times the tolerance of the test.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from golden.make_logits import as_torch_has_it, images, parameters

from pyshuffle.backends.cost import parameter_shapes
from pyshuffle.data import Batch
from pyshuffle.nets import ShuffleNetV2
from pyshuffle.types import Params

LOSSES = Path(__file__).with_name("losses.npz")
NET = ShuffleNetV2(0.5, classes=10, wiring="torchvision")
STEPS, BATCH, SIZE = 20, 32, 64
RATES = tuple(0.005 * min((step + 1) / 5, (STEPS - step) / 15) for step in range(STEPS))
DECAY, SMOOTHING, MOMENTUM = 1e-3, 0.1, 0.9


def batches() -> Iterator[Batch]:
    """Float32 images, each the picture of its class under noise, and labels that turn with the step."""
    pictures = images(SIZE, NET.classes, seed=99)
    for step in range(STEPS):
        labels = (np.arange(BATCH) * 3 + step) % NET.classes
        yield (pictures[labels] + 0.5 * images(SIZE, BATCH, seed=step)).astype(np.float32), labels


def start() -> Params:
    """Float32 parameters to start from."""
    drawn = parameters(parameter_shapes(NET))
    length = {2: 0.1, 3: 4, 4: 4}  # axes: factor
    return {name: (value * length.get(value.ndim, 1)).astype(np.float32) for name, value in drawn.items()}


def torch_losses() -> list[float]:
    import torch
    import torchvision
    from torch.nn.functional import cross_entropy

    model = torchvision.models.shufflenet_v2_x0_5(weights=None, num_classes=NET.classes).train()
    state = {name: torch.from_numpy(np.ascontiguousarray(as_torch_has_it(value))) for name, value in start().items()}
    model.load_state_dict(state, strict=False)
    model.double()  # the truth, free of rounding
    decayed = [weight for weight in model.parameters() if weight.ndim > 1]
    others = [weight for weight in model.parameters() if weight.ndim == 1]
    groups = [{"params": decayed, "weight_decay": DECAY}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.SGD(groups, lr=0.0, momentum=MOMENTUM)
    losses = []
    for (x, labels), rate in zip(batches(), RATES, strict=True):
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad()
        logits = model(torch.from_numpy(x.transpose(0, 3, 1, 2).astype(np.float64)))
        loss = cross_entropy(logits, torch.from_numpy(labels), label_smoothing=SMOOTHING)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def main() -> None:
    losses = torch_losses()
    np.savez_compressed(LOSSES, losses=losses)
    print(*(f"{loss:.5f}" for loss in losses))


if __name__ == "__main__":
    main()
