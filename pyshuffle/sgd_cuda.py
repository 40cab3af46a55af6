"""Training on an NVIDIA GPU: sgd.py with everything on the device. Images go there; the loss and a count come back."""

from typing import Any

import numpy as np

from . import sgd
from .backends.cuda import Cuda
from .backends.tape import Tape
from .cuda import loss
from .cuda.launch import download, on_device, upload, zeros_like
from .cuda.sgd import descend
from .nets import Net
from .ops.loss import Labels
from .types import Array, Params


class Trainer(sgd.Trainer):
    """As the one for the processor, but that `params` and `velocity` are on the device, and the former copies of what is given."""

    params: dict[str, Any]
    velocity: dict[str, Any]

    def __init__(self, net: Net, params: Params, decay: float = sgd.DECAY, smoothing: float = sgd.SMOOTHING) -> None:
        super().__init__(net, {}, decay, smoothing)
        self.restore({"params": params})

    def step(self, images: Array, labels: Labels, rate: float) -> tuple[float, int]:
        tape, x = Tape(Cuda(self.params, training=True)), upload(images)
        logits = self.net(tape, x)
        value, right, dlogits = loss.run(logits, labels, self.smoothing)
        gradients: dict[str, Any] = tape.backward(logits, dlogits)[0]
        for name, gradient in gradients.items():
            weight = self.params[name]
            if name not in self.velocity:
                self.velocity[name] = zeros_like(weight)
            descend(weight, self.velocity[name], gradient, rate, sgd.MOMENTUM, self.decay if weight.ndim > 1 else 0)
        return value, right

    def judge(self, images: Array, labels: Labels) -> tuple[float, int]:
        return loss.run(self.net(Cuda(self.params), upload(images)), labels)[:2]

    def state(self) -> dict[str, Params]:
        stores = {"params": self.params, "velocity": self.velocity}
        return {kind: {name: download(array) for name, array in store.items()} for kind, store in stores.items()}

    def restore(self, state: dict[str, Params]) -> None:
        super().restore({kind: on_device(arrays) for kind, arrays in state.items()})

    def finite(self) -> bool:
        return all(np.isfinite(array).all() for array in self.state()["params"].values())
