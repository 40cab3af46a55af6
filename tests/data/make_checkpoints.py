"""Writes the checkpoints beside this file with torch.save, and says what they hold. Only the former needs PyTorch.

v1_authors_stream.pth        V1 0.25x, 3 groups, under the authors' names, wrapped as a state_dict of a data-parallel model
v2_torchvision_zip.pth       V2 0.25x, under torchvision's names
zoo_stream.pth, zoo_zip.pth  one tensor of every kind
"""

import re
from collections import OrderedDict
from pathlib import Path

import numpy as np

from pyshuffle.backends.cost import parameter_shapes
from pyshuffle.nets import Net, ShuffleNetV1, ShuffleNetV2

V1 = ShuffleNetV1(0.25, groups=3, classes=2, order="authors", bias=False)
V2 = ShuffleNetV2(0.25, classes=2, wiring="torchvision")


def published_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """In memory -> on disk."""
    if len(shape) == 4:
        height, width, inputs, outputs = shape
        return (outputs, inputs, height, width)
    if len(shape) == 3:
        return (shape[2], 1, 3, 3)
    return shape[::-1]


def entries(net: Net, dtype: str = "f4", seed: int = 0) -> dict[str, np.ndarray]:
    """Random entries of a file for a network, under its own names: on disk's shapes, and the counters of its BNs."""
    rng = np.random.default_rng(seed)
    made: dict[str, np.ndarray] = {}
    for name, shape in parameter_shapes(net).items():
        shape = published_shape(shape)
        values = rng.standard_normal(shape)
        if len(shape) > 1:
            values *= np.sqrt(2 / np.prod(shape[1:]))
        elif name.endswith(("weight", "running_var")):
            values = 0.5 + rng.random(shape)
        made[name] = values.astype(dtype)
        if name.endswith("running_var"):
            made[name.replace("running_var", "num_batches_tracked")] = np.array(len(made), "i8")
    return made


def authors_name(name: str) -> str:
    """Our name of an entry -> the authors', of V1 or V2."""
    for ours, theirs in (("conv1.", "first_conv."), ("conv5.", "conv_last."), ("fc.", "classifier.0.")):
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    stage, i, rest = re.fullmatch(r"stage(\d)\.(\d)\.(.*)", name).groups()
    return f"features.{ {'2': 0, '3': 4, '4': 12}[stage] + int(i) }.{rest}"


def authors_v1(made: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Under the authors' names of V1."""
    return {re.sub(r"branch2\.(\d)", _part_of_v1, authors_name(name)): array for name, array in made.items()}


def authors_v2(made: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Under the authors' names of V2."""
    return {
        authors_name(name).replace("branch2", "branch_main").replace("branch1", "branch_proj"): array
        for name, array in made.items()
    }


def _part_of_v1(match: re.Match) -> str:
    layer = int(match[1])
    return f"branch_main_1.{layer}" if layer < 5 else f"branch_main_2.{layer - 5}"


def zoo() -> dict[str, np.ndarray]:
    """What the entries of the zoo hold; `main` makes the same ones in PyTorch's ways."""
    base = np.arange(24, dtype="f4").reshape(4, 6) / 4
    return {
        "plain": base,
        "transposed": base.T,
        "part": base[1:3, 1::2],
        "parameter": base[2],
        "half": base.astype("f2"),
        "bfloat16": base,
        "double": base.astype("f8") / 3,
        "long": np.arange(5),
        "scalar": np.array(7),
        "empty": np.empty((0, 3), "f4"),
    }


def main() -> None:
    import torch

    here = Path(__file__).parent
    base = torch.from_numpy(zoo()["plain"].copy())
    animals = {
        "transposed": base.T,
        "part": base[1:3, 1::2],
        "parameter": torch.nn.Parameter(base[2]),
        "bfloat16": base.bfloat16(),
    }
    animals = OrderedDict((name, animals.get(name, torch.from_numpy(array.copy()))) for name, array in zoo().items())
    animals["plain"] = base  # of one storage with its views
    v1 = {f"module.{name}": torch.from_numpy(array) for name, array in authors_v1(entries(V1, "f2")).items()}
    v2 = OrderedDict((name, torch.from_numpy(array)) for name, array in entries(V2, "f2").items())
    v2._metadata = OrderedDict({"": {"version": 1}})  # which state_dict() adds
    torch.save(v2, here / "v2_torchvision_zip.pth")
    torch.save(animals, here / "zoo_zip.pth")
    wrapped = {"epoch": 3, "loss": 0.5, "state_dict": v1, "seen": [1, (2, 3), None, True, "text"]}
    torch.save(wrapped, here / "v1_authors_stream.pth", _use_new_zipfile_serialization=False)
    torch.save(animals, here / "zoo_stream.pth", _use_new_zipfile_serialization=False)


if __name__ == "__main__":
    main()
