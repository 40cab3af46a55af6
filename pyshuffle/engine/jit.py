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
def array(_typing: Any, address: Any, example: Any, shape: Any) -> Any:
    """The contiguous array of that shape, of numbers like the example, at an address."""
    kind = types.Array(example, len(shape), "C")

    def generate(context: Any, builder: ir.IRBuilder, _signature: Any, values: list[ir.Value]) -> ir.Value:
        number = context.get_data_type(example)
        size = context.get_abi_sizeof(number)
        lengths = cgutils.unpack_tuple(builder, values[2], len(shape))
        strides = [ir.IntType(64)(size)]
        for length in reversed(lengths[1:]):
            strides.insert(0, builder.mul(strides[0], length))
        made = context.make_array(kind)(context, builder)
        data = builder.inttoptr(values[0], number.as_pointer())
        arrayobj.populate_array(made, data=data, shape=lengths, strides=strides, itemsize=ir.IntType(64)(size), meminfo=None)
        return made._getvalue()

    return kind(types.int64, example, shape), generate
