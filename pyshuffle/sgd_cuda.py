"""Training on an NVIDIA GPU: sgd.py with everything on the device. Images go there; the loss and a count come back."""

from typing import Any

from . import sgd
from .backends.cuda import Cuda
from .cuda import loss
from .cuda.launch import download, on_device, upload, wait
from .cuda.sgd import descend
from .nets import Net
from .settings import DECAY, SMOOTHING
from .types import Params


class Trainer(sgd.Trainer):
    """As the one for the processor, but that `params` and `velocity` are on the device, and the former copies of what is given."""

    params: dict[str, Any]
    velocity: dict[str, Any]
    arrays = Cuda
    given: Any = staticmethod(upload)
    assess: Any = staticmethod(loss.run)
    descend: Any = staticmethod(descend)
    wait = staticmethod(wait)

    def __init__(self, net: Net, params: Params, decay: float = DECAY, smoothing: float = SMOOTHING) -> None:
        super().__init__(net, params, decay, smoothing)
        self.params = on_device(params)

    def state(self) -> dict[str, Params]:
        stores = {"params": self.params, "velocity": self.velocity}
        return {kind: {name: download(array) for name, array in store.items()} for kind, store in stores.items()}

    def restore(self, state: dict[str, Params]) -> None:
        super().restore({kind: on_device(arrays) for kind, arrays in state.items()})
