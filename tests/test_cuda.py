"""What the GPU's kernels give under the simulator: whole networks, training, edges of tiles, and what the simulator must see.

The operations themselves are tested with those of the other interpretations, in test_ops.py and test_tape.py.
"""

import numpy as np
import pytest
from conftest import SIMULATED, assert_close, draw_params

if not SIMULATED:
    pytest.skip("NUMBA_ENABLE_CUDASIM=1 is not set", allow_module_level=True)

import simulator  # noqa: F401 (it takes the place of numba's)

from pyshuffle import sgd
from pyshuffle.backends.cuda import Cuda
from pyshuffle.backends.reference import Reference
from pyshuffle.backends.tape import Tape
from pyshuffle.cuda import launch, model
from pyshuffle.cuda.sgd import Trainer
from pyshuffle.nets import ShuffleNetV1, ShuffleNetV2, shufflenet_v1, shufflenet_v2
from pyshuffle.ops import loss

NETS = {
    "v1": lambda: ShuffleNetV1(0.125, groups=3, classes=5),
    "v1, authors' order": lambda: ShuffleNetV1(0.125, groups=2, classes=5, order="authors", bias=False),
    "v2": lambda: ShuffleNetV2(0.125, classes=5),
    "v2, torchvision's wiring": lambda: ShuffleNetV2(0.125, classes=5, wiring="torchvision"),
    "v2, authors' order": lambda: ShuffleNetV2(0.125, classes=5, order="authors", extra_depthwise=True),
}


@pytest.fixture(params=NETS)
def net(request, monkeypatch):
    """Networks of few and narrow units: in all else they are the real ones."""
    monkeypatch.setattr(shufflenet_v1, "STAGE2", {2: 128, 3: 96})
    monkeypatch.setattr(shufflenet_v1, "STEM", {0.125: 6})
    monkeypatch.setattr(shufflenet_v1, "REPEATS", (2, 1, 1))
    monkeypatch.setattr(shufflenet_v2, "WIDTHS", {0.125: (20, 28, 36, 34)})
    monkeypatch.setattr(shufflenet_v2, "REPEATS", (2, 1, 1))
    monkeypatch.setattr(shufflenet_v2, "STEM", 6)
    return NETS[request.param]()


def pictures(*shape):
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def expected_logits(net, params, images):
    return net(Reference({name: array.astype(np.float64) for name, array in params.items()}), images.astype(np.float64))


class ReferenceTrainer(sgd.Trainer):
    """The step of sgd.py by the reference, in float64."""

    def step(self, images, labels, rate):
        tape = Tape(Reference(self.params, training=True))
        logits = self.net(tape, images)
        gradients, _ = tape.backward(logits, loss.backward_reference(logits, labels, self.smoothing))
        for name, gradient in gradients.items():
            weight = self.params[name]
            decayed = gradient + self.decay * weight if weight.ndim > 1 else gradient
            self.velocity[name] = 0.9 * self.velocity.get(name, 0) + decayed
            weight -= rate * self.velocity[name]
        return loss.forward_reference(logits, labels, self.smoothing), int((logits.argmax(axis=1) == labels).sum())


def test_a_compiled_network_gives_the_reference_logits(net):
    params, images = draw_params(net, (1, 32, 32, 3), np.float32), pictures(2, 33, 32, 3)
    logits = model.compile(net, params, images.shape)(images)
    assert_close(logits, expected_logits(net, params, images), 1e-5)


def test_a_network_gives_the_reference_logits(net):
    params, images = draw_params(net, (1, 32, 32, 3), np.float32), pictures(1, 32, 35, 3)
    logits = launch.download(net(Cuda(launch.on_device(params)), launch.upload(images)))
    assert_close(logits, expected_logits(net, params, images), 1e-5)


@pytest.mark.parametrize("net", ["v1", "v2"], indirect=True)
def test_three_steps_of_training_are_the_references(net):
    """Losses, and what the parameters have come to, running statistics included."""
    params, images, labels = draw_params(net, (1, 32, 32, 3)), pictures(5, 32, 32, 3), np.array([1, 4, 0, 2, 2])
    trainer = Trainer(net, {name: array.astype(np.float32) for name, array in params.items()})
    reference = ReferenceTrainer(net, params)
    for _ in range(3):
        value, right = trainer.step(images, labels, 0.02)
        expected, named = reference.step(images.astype(np.float64), labels, 0.02)
        assert abs(value - expected) <= 1e-5 * expected
        assert right == named
    for kind, arrays in trainer.state().items():
        for name, array in arrays.items():
            assert_close(array, reference.state()[kind][name], 1e-5)
