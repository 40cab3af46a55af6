"""Compiled inference on an NVIDIA GPU: the steps of the plan, each of them one launch of a kernel of ../cuda/.

The plan (plan.py) has folded batch normalisation, ReLU and shortcuts into the convolutions, and made lists of split, concat
and shuffle; what those lists say becomes the tables through which the kernels read. Maps lie in one array, the arena, that all steps
read and write, one place after another as they are needed: a place has the maps of all images, (N, H, W, columns), without halo.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from ..cuda import conv, depthwise, pool
from ..cuda.launch import LARGEST, Tensor, blocks_for, copy, fetch, release, upload
from ..errors import PyShuffleError, ShapeError
from ..nets import Net
from ..types import Array, Params
from .layout import Buffer, place
from .machine import FLOAT, Machine
from .plan import Plan, size_of
from .steps import DENSE, IMAGE, MAXIMUM, MEAN, OUTPUT, WINDOW, Map, Step

NOTHING = (0, 0, 0)  # where a residual lies that there is not


class DevicePlan(Plan):
    """The steps of the engine, with maps that lie as they are: no halos, no vectors, no bands."""

    def __init__(self, net: Net, params: Params, height: int, width: int) -> None:
        super().__init__(net, params, height, width, Machine(lanes=1, registers=0))

    def lay_out(self) -> None:
        for step in self.steps:
            for before, after in pairwise(step.source.buffers):  # one distance from pixel to pixel for all that a step reads
                before.layout.join(after.layout)
        for step in self.steps:
            step.target.layout.halo = 0  # the kernels look where a map ends
        image, logits = self.steps[0].target, self.steps[-1].source
        if len(image.layout.buffers) > 1 or len(logits.buffers) > 1:
            raise PyShuffleError("on cuda no image is read as one with a map, and all logits come of one operation")
        self.arena = place(self.steps, meetings=set(), threads=1)


class Program(NamedTuple):
    """A plan for so many images."""

    arena: Tensor
    image: Any  # the part of the arena that images go to
    logits: Any  # the part that they come from
    launches: list[Callable[[], None]]

    def run(self) -> None:
        for launch in self.launches:
            launch()


class Model:
    """A compiled network: `model(x) -> logits`, as engine.Model."""

    def __init__(self, plan: DevicePlan) -> None:
        self.plan = plan
        self.constants = {step.target: (upload(step.what.weight), upload(step.what.bias)) for step in plan.steps}
        self.programs: dict[int, Program] = {}  # by number of images, the last one
        self._lock = threading.Lock()  # calls share the arena: Python threads take turns

    def __call__(self, x: Array) -> Array:
        x = np.asarray(x)
        self.plan.check(x)
        if not np.isfinite(x).all():
            raise ShapeError("x holds a value that is not finite")
        with self._lock:
            program = self.program(len(x))
            copy(np.ascontiguousarray(x), program.image)
            program.run()
            logits = fetch(program.logits).reshape(len(x), -1)
        return logits.take([channel for _, channel in self.plan.steps[-1].source.places], axis=1)

    def program(self, images: int) -> Program:
        """Raises ShapeError where the maps of so many images are more than an int32 can point into."""
        if images not in self.programs:
            if self.programs:
                self.programs.clear()  # an arena for every number of images would soon fill the device
                release()
            if self.plan.arena // FLOAT * images > LARGEST:
                raise ShapeError(f"{images} images at once are too many: at most {LARGEST // (self.plan.arena // FLOAT)}")
            arena = Tensor((self.plan.arena // FLOAT * images,))
            steps = [step for step in self.plan.steps if step.kind not in (IMAGE, OUTPUT)]
            launches = [self.launch(step, arena, images) for step in steps]
            ends = self.plan.steps[0].target, self.plan.steps[-1].source.buffers[0]
            image, logits = (part(arena, buffer, images) for buffer in ends)
            self.programs[images] = Program(arena, image, logits, launches)
        return self.programs[images]

    def launch(self, step: Step, arena: Tensor, images: int) -> Callable[[], None]:
        """What a step is: a kernel with all that it is given."""
        what, (weight, bias) = step.what, self.constants[step.target]
        read, offsets = where(step.source, images)
        written, channels = place_of(step.target, images), what.channels
        view = (images, *step.size, step.source.height, step.source.width)
        if step.kind == DENSE:
            groups, taps, inputs, outputs = what.weight.shape
            added, residual_offsets = where(what.residual, images) if what.residual else (NOTHING, offsets)
            follow = conv.BIAS | conv.RESIDUAL * bool(what.residual) | conv.RELU * what.relu
            strides = (0, inputs * outputs, outputs, 1, taps * inputs * outputs)
            return partial(
                conv.product, arena, offsets, weight, bias, arena, residual_offsets, arena, (*view, what.kernel, what.stride, 1),
                (*read, inputs), strides, (*written, outputs), added, follow, groups, what.limit,
            )  # fmt: skip
        if step.kind == WINDOW:
            follow = conv.BIAS | conv.RELU * what.relu
            return partial(
                depthwise.filtered, arena, offsets, weight, bias, arena, (*view, 1), read, (*written, channels), what.stride, 0,
                follow, what.limit,
            )  # fmt: skip
        if step.kind == MAXIMUM:
            size = images * step.size[0] * step.size[1] * channels
            return partial(pool.maximum_of, blocks_for(size), arena, offsets, arena, view, read, (*written, channels))
        assert step.kind == MEAN
        pixels = step.source.height * step.source.width
        rows = (*written[:2], channels, pixels)
        return partial(pool.mean_of, blocks_for(images * channels), arena, offsets, arena, read, rows, images)


def place_of(buffer: Buffer, images: int) -> tuple[int, int, int]:
    """Where a buffer begins, and what is from image to image and from pixel to pixel, in values."""
    layout = buffer.layout
    return buffer.offset // FLOAT * images, layout.height * layout.row // FLOAT, layout.pixel // FLOAT


def where(map_: Map, images: int) -> tuple[tuple[int, int, int], Tensor]:
    """Where the first of a map's buffers begins, as above, and the table of how far from there each channel lies."""
    begins = {buffer: place_of(buffer, images) for buffer in map_.buffers}
    first = min(begins.values())
    offsets = [begins[buffer][0] - first[0] + buffer.places[channel] for buffer, channel in map_.places]
    return first, upload(np.array(offsets), np.int32)


def part(arena: Tensor, buffer: Buffer, images: int) -> Any:
    """The maps of a buffer that has no columns besides its channels."""
    begin, image, _ = place_of(buffer, images)
    return arena.values[begin : begin + image * images]


def compile(net: Net, params: Params, input_shape: Sequence[int]) -> Model:
    """The network with these parameters as a `Model`, as engine.compile. Raises ShapeError, ArchError, WeightsError;
    PyShuffleError for what no network here does: an image that is read as one with a map, or logits that are parts of several maps.
    """
    _, height, width = size_of(input_shape)
    return Model(DevicePlan(net, params, height, width))
