"""The one array alias of the package."""

from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[np.floating[Any]]
Params: TypeAlias = dict[str, Array]  # a network's whole state: parameter name -> array


class Shaped(Protocol):
    """What is asked of an array before anything is computed, be it NumPy's or on a device."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def ndim(self) -> int: ...
    @property
    def dtype(self) -> np.dtype[Any]: ...
    def __len__(self) -> int: ...
