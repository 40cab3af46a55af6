"""A step of training: forward, backward, and stochastic gradient descent (ops/sgd.py).

The decay is for weights of more than one axis: filters, and the classifier's matrix.
"""

from collections.abc import Callable, Iterable
from typing import Any

from . import memory
from .backends.arrays import Arrays
from .backends.cost import check_params
from .backends.numba import Numba
from .backends.reference import Reference
from .backends.tape import Tape
from .data import Batch
from .errors import DataError
from .nets import Net
from .ops import loss, sgd
from .ops.loss import Labels
from .settings import DECAY, MOMENTUM, SMOOTHING
from .types import Array, Params


class Trainer:
    """A network, its parameters, which `step` moves in place, and their velocities. Raises WeightsError for other parameters."""

    arrays: type[Arrays] = Numba  # what the network is run as
    assess: Callable[..., tuple[float, int, Any]] = staticmethod(loss.run)
    descend: Callable[..., None] = staticmethod(sgd.descend)

    def __init__(self, net: Net, params: Params, decay: float = DECAY, smoothing: float = SMOOTHING) -> None:
        check_params(net, params)
        self.net, self.params, self.decay, self.smoothing = net, params, decay, smoothing
        self.velocity: Params = {}
        memory.keep()

    def step(self, images: Array, labels: Labels, rate: float) -> tuple[float, int]:
        """One step on images (N, H, W, 3). Returns the mean loss before it, and how many images were named rightly."""
        tape = Tape(self.arrays(self.params, training=True))
        logits = self.net(tape, self.given(images))
        value, right, dlogits = self.assess(logits, labels, self.smoothing)
        gradients, _ = tape.backward(logits, dlogits)
        for name, gradient in gradients.items():
            weight = self.params[name]
            if name not in self.velocity:
                self.velocity[name] = self.arrays.zeros_like(weight)
            self.descend(weight, self.velocity[name], gradient, rate, MOMENTUM, self.decay if weight.ndim > 1 else 0)
        return value, right

    def recompute(self, batches: Iterable[Batch]) -> None:
        """Make the running statistics the mean of those that these batches have. While the weights moved, they lagged behind.

        At batch k they move by 1/k of the way, which makes them the mean of the first k.
        """
        for number, images in enumerate((images for images, _ in batches if len(images)), start=1):
            self.net(self.arrays(self.params, training=True, momentum=1 / number), self.given(images))

    def measure(self, batches: Iterable[Batch]) -> tuple[float, float]:
        """(mean loss without smoothing, accuracy) with the running statistics. Raises DataError without an image."""
        total, right, seen = 0.0, 0, 0
        for images, labels in batches:
            if len(labels):
                value, named, _ = self.assess(self.net(self.arrays(self.params), self.given(images)), labels, 0.0)
                total, right, seen = total + value * len(labels), right + named, seen + len(labels)
        if not seen:
            raise DataError("there is no image to measure on")
        return total / seen, right / seen

    def wait(self) -> None:
        """Until all that steps have begun is done: for whoever measures how long it takes."""

    def given(self, images: Array) -> Any:
        """Images as the network takes them."""
        return images

    def state(self) -> dict[str, Params]:
        """Everything that steps move, on the host."""
        return {"params": self.params, "velocity": self.velocity}

    def restore(self, state: dict[str, Params]) -> None:
        """Put arrays of such a state in the place of those there are."""
        for kind, arrays in state.items():
            getattr(self, kind).update(arrays)


class ReferenceTrainer(Trainer):
    """The same by plain NumPy, in the dtype of the parameters: the oracle of the others."""

    arrays = Reference
    assess = staticmethod(loss.run_reference)
    descend = staticmethod(sgd.descend_reference)


def learning_rate(step: int, steps: int, steps_per_epoch: int, highest: float) -> float:
    """Up from 0 over an epoch, or a tenth of a run of fewer than ten epochs, then down to 0: both linear."""
    warmup = max(1, min(steps_per_epoch, steps // 10))
    return highest * min((step + 1) / warmup, (steps - step) / max(1, steps - warmup))
