"""Kernels that find their tensors in a table, compiled for a Hopper GPU, which is not needed for that.

Where tensors are aligned they must move 16 bytes at a time. If they did not, no result would be wrong, only slow.
"""

import importlib
import re

import pytest

pytest.importorskip("triton")

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

COLUMNS = {"BLOCK_T": 64, "BLOCK_D": 64, "CONTIGUOUS": True}
SMALL = {"BLOCK_T": 64, "BLOCK_D": 64, "PRECISION": "ieee", "UPCAST": False}
# Module, kernel, the types of those arguments that are not int32, and the kernel's constants.
KERNELS = {
    "column sums": ("column_sums", "_kernel", {"sums_ptr": "*fp32"}, COLUMNS, "DTYPE"),
    "small Gram": ("linear_small", "_kernel", {"found_ptr": "*fp32"}, SMALL, "DTYPE"),
    "token sums": ("token_sums", "_kernel", {"sums_ptr": "*fp32"}, {"BLOCK_D": 1024, "X": tl.float32}, "G"),
    "all scaled": ("weighted", "_all_scaled", {"factors_ptr": "*fp32"}, {"BLOCK": 2048}, "DTYPE"),
    "noise": (
        "noise",
        "_kernel",
        {"addresses": "*i64", "owners": "*i32", "key_ptr": "*i64", "scales": "*fp32"},
        {"HALF": 1024},
        "DTYPE",
    ),
}


@pytest.mark.parametrize("dtype", [tl.float32, tl.bfloat16])
@pytest.mark.parametrize("kernel", KERNELS)
def test_it_moves_16_bytes_at_a_time(kernel, dtype):
    assert wide(kernel, dtype, aligned=True) > 0
    assert wide(kernel, dtype, aligned=False) == 0


def wide(kernel, dtype, *, aligned):
    """The number of instructions in the kernel's PTX that move 16 bytes to or from global memory."""
    module, name, types, constants, its_dtype = KERNELS[kernel]
    function = getattr(importlib.import_module(f"flash_clipping.kernels.{module}"), name)
    constants = constants | {its_dtype: dtype, "ALIGNED": aligned}
    signature = dict.fromkeys(function.arg_names, "i32") | {"rows": "*i64"} | types
    signature |= dict.fromkeys(constants, "constexpr")
    pointers = [i for i, argument in enumerate(function.arg_names) if signature[argument].startswith("*")]
    source = ASTSource(
        function,
        signature,
        constexprs={(function.arg_names.index(each),): value for each, value in constants.items()},
        attrs={(i,): [["tt.divisibility", 16]] for i in pointers},
    )
    ptx = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 4, "num_stages": 3}).asm["ptx"]
    return len(re.findall(r"(?:ld|st)\.global\.v4\.b32|cp\.async\.cg\.shared\.global .*, 0x10,", ptx))
