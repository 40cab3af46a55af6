"""How the engine's functions are compiled: as parts of one native function that needs neither the interpreter nor numba at run time.

They allocate nothing and free nothing, and so do without numba's runtime; arrays are looked at where they lie.
"""

from typing import Any

import numba
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np import arrayobj

OPTIONS = {"error_model": "numpy", "fastmath": {"contract"}, "nogil": True}
ALONE = {"_nrt": False, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
kernel = numba.njit(**OPTIONS, **ALONE)


@intrinsic
def array(_typing: Any, address: Any, dtype: Any, shape: Any) -> Any:
    """The contiguous array of that shape at an address: numba's `carray`, which itself asks for the runtime."""
    kind = types.Array(dtype.dtype, len(shape), "C")

    def generate(context: Any, builder: ir.IRBuilder, _signature: Any, values: list[ir.Value]) -> ir.Value:
        pointer = builder.inttoptr(values[0], cgutils.voidptr_t)
        return arrayobj.np_cfarray(context, builder, kind(types.voidptr, shape), [pointer, values[2]])

    return kind(types.int64, dtype, shape), generate
