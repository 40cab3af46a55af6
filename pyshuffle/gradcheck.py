"""Gradients checked against measurement, with random numbers v in the place of dy (a cotangent); J is the Jacobian of f.
    <v, J u>  measured as  <v, f(x + h u) - f(x - h u)> / 2h          =          <J^T v, u>  as the backward answers it
for u random directions and single coordinates. A constant v would prove nothing: through a batch normalisation it checks 0 = 0, and
a shuffle that moves channels the wrong way passes.

The measured side is right where f is smooth from x - h u to x + h u: draw the inputs of a ReLU away from 0 and those of a maximum
distinct, by several of the longest step. The inside of a network cannot be drawn, and of its thousands of ReLUs some lie near
their kink. Hence several steps, of which the best counts. A long one may cross kinks; a short one crosses hardly any but loses
digits to rounding; and a wrong gradient is wrong at every step.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np

from .backends.ops import Ops
from .backends.reference import Reference
from .backends.tape import Tape
from .errors import ShapeError
from .types import Array, Params

Probe: TypeAlias = dict[int, Array]  # u: index of an array -> its part of the direction, absent where that is 0

STEPS = (1e-6, 1e-8, 1e-9)  # h


def gradcheck(
    forward: Callable[..., Any],
    backward: Callable[..., Sequence[Array]],
    arrays: Sequence[Array],
    *,
    alone: Sequence[int] | None = None,
    directions: int = 2,
    coordinates: int = 5,
    seed: int = 0,
) -> float:
    """The largest relative error of the gradients of `forward` that `backward` gives.

    forward(*arrays) -> y or a tuple of them; backward(*cotangents like y, *arrays) -> the gradient with respect to each array, in
    order. Probed are `directions` through all arrays at once, and `directions` and `coordinates` of each array alone, or of those
    with the indices `alone`. An error is relative to the norm of the terms that <v, J u> sums for u of length 1, the largest among
    the probes of the same array, or of all arrays at once where that is more: some gradients are truly 0, and what is measured is
    rounding (with respect to the bias of a BN in training, if only a 1x1 convolution and a BN follow).

    A NaN anywhere gives NaN, and so do gradients that are 0 throughout, since then nothing was checked: ask for
    `gradcheck(...) <= 1e-6`, which is false for NaN. Raises ShapeError for arrays that are not float64 (in float32 a difference has
    no digits left) and for gradients that do not have the shapes of the arrays.
    """
    if any(array.dtype != np.float64 for array in arrays):
        raise ShapeError(f"arrays are {', '.join(str(array.dtype) for array in arrays)}: gradients are measured in float64")
    rng = np.random.default_rng(seed)
    v = [rng.standard_normal(np.shape(y)) for y in _as_tuple(forward(*arrays))]
    gradients = backward(*v, *arrays)
    if [d.shape for d in gradients] != [array.shape for array in arrays]:
        raise ShapeError(f"gradients have shapes {[d.shape for d in gradients]}, arrays {[array.shape for array in arrays]}")

    def error_and_scale(u: Probe) -> Array:
        answered = sum((gradients[i] * part).sum() for i, part in u.items())
        terms = [_terms(forward, v, arrays, u, step) for step in STEPS]
        error = np.min([abs(measured.sum() - answered) for measured in terms])
        return np.array([error, np.linalg.norm(terms[-1])]) / np.sqrt(sum((part**2).sum() for part in u.values()))

    everything = range(len(arrays))
    groups = [[_direction(rng, arrays, everything) for _ in range(directions)]]
    for i in everything if alone is None else alone:
        along = [_direction(rng, arrays, [i]) for _ in range(directions)]
        groups.append(along + [_coordinate(rng, arrays, i) for _ in range(coordinates)])
    # np.max, unlike max, hands a NaN on.
    errors, scales = np.transpose([np.max([error_and_scale(u) for u in group], axis=0) for group in groups])
    with np.errstate(invalid="ignore", divide="ignore"):
        return float(np.max(errors / np.maximum(scales, scales[0])))


def check_network(
    net: Callable[[Ops[Array], Array], Array], params: Params, x: Array, *, training: bool = True, sample: int = 4, seed: int = 0
) -> float:
    """The largest relative error of a network's gradients with respect to all its parameters and its input, as the tape gives them.

    net: a Net, or any function over operations; params: those that it reads, and x its input, all float64. All are probed at
    once, and x and `sample` parameters, drawn at random, alone. In training the running statistics of a copy move, never those
    of `params`. Raises what `gradcheck` raises.
    """
    running = {name: value for name, value in params.items() if name.endswith((".running_mean", ".running_var"))}
    names = [name for name in params if name not in running]

    def reference(weights: Sequence[Array]) -> Reference:
        copies = {name: value.copy() for name, value in running.items()}
        return Reference(copies | dict(zip(names, weights, strict=True)), training)

    def forward(x: Array, *weights: Array) -> Array:
        return net(reference(weights), x)

    def backward(dy: Array, x: Array, *weights: Array) -> list[Array]:
        tape = Tape(reference(weights))
        by_name, by_array = tape.backward(net(tape, x), dy, wrt=(x,))
        return by_array + [by_name.get(name, np.zeros_like(w)) for name, w in zip(names, weights, strict=True)]

    arrays = [x, *(params[name] for name in names)]
    drawn = np.random.default_rng(seed).permutation(len(names))[:sample] + 1
    return gradcheck(forward, backward, arrays, alone=[0, *drawn], directions=1, coordinates=2, seed=seed)


def _terms(forward: Callable[..., Any], v: Sequence[Array], arrays: Sequence[Array], u: Probe, step: float) -> Array:
    """The terms of <v, J u>, measured with the given step, in one row."""
    ahead, behind = (
        _as_tuple(forward(*(array + h * u[i] if i in u else array for i, array in enumerate(arrays)))) for h in (step, -step)
    )
    return np.concatenate([np.ravel(d * (a - b) / (2 * step)) for d, a, b in zip(v, ahead, behind, strict=True)])


def _direction(rng: np.random.Generator, arrays: Sequence[Array], through: Sequence[int]) -> Probe:
    return {i: rng.standard_normal(arrays[i].shape) for i in through}


def _coordinate(rng: np.random.Generator, arrays: Sequence[Array], i: int) -> Probe:
    u = np.zeros(arrays[i].shape)
    u.flat[rng.integers(u.size)] = 1
    return {i: u}


def _as_tuple(y: Any) -> tuple[Any, ...]:
    return y if isinstance(y, tuple) else (y,)
