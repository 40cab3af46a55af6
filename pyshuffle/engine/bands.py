"""Steps that are computed together, a band of rows at a time, so that a large map between them never leaves the near caches.

Such a map is a buffer of one band. Each thread has bands of its own, in its own arena, and addresses a band as if the map's first row
lay where it would if all rows had room.
"""

from __future__ import annotations

from itertools import pairwise

from .layout import by_rows
from .machine import FLOAT, Machine
from .steps import DENSE, MAXIMUM, STEM, WINDOW, Step

POOLED = 14  # rows of a max-pooled map for which image and first convolution are computed at a time
LARGE = 1 << 20  # bytes of a map that would leave the second cache before it is read
NEARBY = 1 << 18  # bytes of one that stays there
LIGHT = 1 << 17  # bytes of weights that stay there beside it


def opened(steps: list[Step], machine: Machine) -> list[Step]:
    """Where the network begins with a 3x3 convolution of stride 2 and a max-pool, as a ShuffleNet does, the first three steps are
    computed together.

    The map between the two is the largest of all. The bands of image and map: for the pooled rows from r to before r + POOLED, of
    the rows from 4 r - 3 and from 2 r - 1 to before 4 (r + POOLED) and 2 (r + POOLED).
    """
    image, conv, pool, *further = steps
    opens = (conv.kind, pool.kind) == (DENSE, MAXIMUM) and conv.what.kernel == 3 and conv.what.stride == 2
    chain = conv.reads == [image.target] and pool.reads == [conv.target]
    if not (opens and chain and conv.target.needed == 2 > image.target.needed and holds_tile(conv, machine)):
        return steps
    image.target.layout.height, conv.target.layout.height = 4 * POOLED + 2, 2 * POOLED + 1
    image.target.needed = 2
    return [image._replace(kind=STEM, span=3, band=POOLED), conv, pool, *further]


def paired(steps: list[Step], machine: Machine, threads: int) -> list[Step]:
    """Where a large map goes from a convolution to the depthwise step behind it and nowhere else, the two are computed together.

    The bands of the map: for the rows from r to before r + band of the depthwise step, whose stride is s, of the rows from s r - 1 to
    before s (r + band - 1) + 2. What the next band needs of them is moved, not computed again. The weights of the convolution are
    read anew for each band, so they have to be small; and it adds no shortcut, of which other threads' rows would be needed.
    """
    steps = list(steps)
    for number, (conv, window) in enumerate(pairwise(steps)):
        between, (height, width) = conv.target, conv.size
        row = width * conv.what.channels * FLOAT
        large = height * row >= LARGE and holds_tile(conv, machine)
        light = conv.what.weight.size * FLOAT <= LIGHT
        alone = window.reads == [between] and between.needed == window.target.made and not conv.what.residual
        if (conv.kind, window.kind) == (DENSE, WINDOW) and large and light and alone and by_rows(window, machine, threads):
            stride = window.what.stride
            band = max(2, NEARBY // (stride * row))
            between.layout.height = stride * (band - 1) + 1
            for buffer in conv.reads:  # until the last band is done
                buffer.needed = max(buffer.needed, window.target.made)
            steps[number] = conv._replace(span=2, band=band)
    return steps


def holds_tile(step: Step, machine: Machine) -> bool:
    """Whether a row of a map does, so that no tile reaches beyond its band."""
    return step.size[1] >= max(machine.heights.values())
