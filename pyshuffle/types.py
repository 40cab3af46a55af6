"""The one array alias of the package."""

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[np.floating[Any]]
Params: TypeAlias = dict[str, Array]  # a network's whole state: parameter name -> array
