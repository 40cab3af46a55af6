"""Logits computed by torch, of ShuffleNet V1 and V2 and MobileNet V2, for weights and images that anyone can draw again.

    PYTHONPATH=. python tests/golden/make_logits.py        (from the root of the project; needs torch and torchvision)

writes logits.npz next to this file: the file holds answers alone. Weights and images are functions of a name, a shape and a seed,
so the test draws the same ones without torch. Random weights serve as well as trained ones, because a wrong padding, a
transposed filter or a misplaced shuffle changes their logits just as much. Both V2 are torchvision's; V1, which torchvision does not
have, is written below a second time, from figure 2 of the paper and with torch's own channel shuffle.
"""

import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from pyshuffle.nets import MobileNetV2, Net, ShuffleNetV1, ShuffleNetV2
from pyshuffle.types import Array, Params

LOGITS = Path(__file__).with_name("logits.npz")
NETS: dict[str, Net] = {
    "v1_g3_x0_5": ShuffleNetV1(0.5, groups=3),
    "v1_g8_x1_0": ShuffleNetV1(1.0, groups=8),
    "v2_x0_5": ShuffleNetV2(0.5, wiring="torchvision"),
    "v2_x1_0": ShuffleNetV2(1.0, wiring="torchvision"),
    "mobilenet_v2": MobileNetV2(1.0),
}
SIZES = (224, 97)  # pixels
SPREAD = {"bias": (-0.2, 0.2), "running_mean": (-0.3, 0.3), "running_var": (0.5, 2.0), "weight": (0.5, 1.5)}  # of the vectors


def parameters(shapes: Mapping[str, tuple[int, ...]], seed: int = 0) -> Params:
    """Parameters of the given names and shapes in float64: activations neither vanish nor explode, and no statistic is trivial."""
    return {name: parameter(name, shape, seed) for name, shape in shapes.items()}


def parameter(name: str, shape: tuple[int, ...], seed: int) -> Array:
    if len(shape) > 1:
        limit = np.sqrt(4.5 / np.prod(shape[:-1]))  # variance 1.5 / fan: ReLUs take away half, where there are any
        return uniform(name, shape, seed, -limit, limit)
    return uniform(name, shape, seed, *SPREAD[name.rpartition(".")[2]])


def images(size: int, batch: int = 2, seed: int = 0) -> Array:
    """Coloured squares, eight along an axis, under noise: (batch, size, size, 3) between -2 and 2, float64.

    Squares, because the mean of a whole map of noise would be the same for every image.
    """
    square = np.arange(size) * 8 // size
    squares = uniform("squares", (batch, 8, 8, 3), seed, -1, 1)
    return squares[:, square[:, None], square] + uniform("noise", (batch, size, size, 3), seed, -1, 1)


def uniform(name: str, shape: tuple[int, ...], seed: int, low: float, high: float) -> Array:
    """Of all that NumPy draws, only a bit generator's integers are promised to stay the same from version to version."""
    bits = np.random.PCG64([seed, zlib.crc32(name.encode())]).random_raw(int(np.prod(shape)))
    return (low + (high - low) * ((bits >> np.uint64(11)) / 2.0**53)).reshape(shape)


def torch_logits(name: str, params: Params, x: Array) -> Array:
    import torch

    state = {key: torch.from_numpy(np.ascontiguousarray(as_torch_has_it(value))) for key, value in params.items()}
    image = torch.from_numpy(x.transpose(0, 3, 1, 2).copy())
    with torch.no_grad():
        if name.startswith("v1"):
            return v1_logits(state, image, NETS[name].groups).numpy()
        return torchvision_logits(state, image, name).numpy()


def torchvision_logits(state, image, name):
    from torchvision import models

    if name.startswith("mobilenet"):
        model = models.mobilenet_v2(weights=None, width_mult=NETS[name].width)
    else:
        model = getattr(models, f"shufflenet_{name}")(weights=None)
    model = model.double().eval()
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected
    assert all(key.endswith("num_batches_tracked") for key in missing)
    return model(image)


def v1_logits(state, image, groups):
    import torch
    from torch.nn import functional

    def conv_bn(x, conv, bn, **settings):
        x = functional.conv2d(x, state[f"{conv}.weight"], **settings)
        return functional.batch_norm(x, *(state[f"{bn}.{entry}"] for entry in ("running_mean", "running_var", "weight", "bias")))

    def unit(x, name, stride, first_groups):
        y = functional.relu(conv_bn(x, f"{name}.0", f"{name}.1", groups=first_groups))
        y = torch.channel_shuffle(y, groups)
        y = conv_bn(y, f"{name}.3", f"{name}.4", stride=stride, padding=1, groups=y.shape[1])
        y = conv_bn(y, f"{name}.5", f"{name}.6", groups=groups)
        if stride == 1:
            return functional.relu(x + y)
        return functional.relu(torch.cat([functional.avg_pool2d(x, 3, stride=2, padding=1), y], dim=1))

    x = functional.relu(conv_bn(image, "conv1.0", "conv1.1", stride=2, padding=1))
    x = functional.max_pool2d(x, 3, stride=2, padding=1)
    for stage, repeats in ((2, 4), (3, 8), (4, 4)):
        for i in range(repeats):
            x = unit(x, f"stage{stage}.{i}.branch2", 2 if i == 0 else 1, 1 if stage == 2 and i == 0 else groups)
    return functional.linear(x.mean(dim=(2, 3)), state["fc.weight"], state["fc.bias"])


def as_torch_has_it(value: Array) -> Array:
    """(K, K, C/G, O) -> (O, C/G, K, K), depthwise (3, 3, C) -> (C, 1, 3, 3), (I, O) -> (O, I)."""
    if value.ndim == 4:
        return value.transpose(3, 2, 0, 1)
    return value.transpose(2, 0, 1)[:, None] if value.ndim == 3 else value.T


def main() -> None:
    from pyshuffle.backends.cost import parameter_shapes

    logits = {
        f"{name}_{size}": torch_logits(name, parameters(parameter_shapes(net)), images(size)).astype(np.float32)
        for name, net in NETS.items()
        for size in SIZES
    }
    np.savez_compressed(LOGITS, **logits)
    for key, value in logits.items():
        print(key, value.shape, f"largest {abs(value).max():.3f}, deviation {value.std():.3f}")


if __name__ == "__main__":
    main()
