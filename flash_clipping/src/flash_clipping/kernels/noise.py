"""Noise for many tensors in one launch. An element's noise depends on a key, its parameter and its index there."""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from flash_clipping.kernels.launch import on_device
from flash_clipping.kernels.table import TYPES, places, table, within
from flash_clipping.shard_ranges import ShardRange

BLOCK = 2048


class NoiseTable:
    """The ranges of their parameters that some tensors hold, on the device. It is kept between steps.

    The tensors are contiguous and have one dtype and device.
    """

    def __init__(self, ranges: Sequence[Sequence[ShardRange]], device: torch.device):
        """
        Args:
            ranges: of each tensor.
            device: of the tensors.
        """
        rows, owners, program = [], [], 0
        for tensor, parts in enumerate(ranges):
            for part in parts:
                blocks = triton.cdiv(part.first % 2 + part.size, BLOCK)
                at_16 = part.first % 2 == 0 and part.start % 16 == 0 and part.size % 16 == 0
                rows.append([tensor, part.parameter, part.first, part.start, part.size, program, int(at_16)])
                owners += [len(rows) - 1] * blocks
                program += blocks
        self.programs = program
        self.rows = torch.tensor(rows, dtype=torch.int64, device=device).view(-1, 7)
        self.owners = torch.tensor(owners, dtype=torch.int32, device=device)

    def add(self, tensors: Sequence[torch.Tensor], key: torch.Tensor, scales: torch.Tensor) -> None:
        """Adds N(0, scales[0]²) to the tensors in place, rounding once. If scales[1] is 0 they become noise alone.

        Args:
            tensors: in the order of the ranges.
            key: 64 bits of the step, (1,) int64 on the device.
            scales: (2,) float32 on the device.
        """
        if not self.programs:
            return
        addresses = [tensor.data_ptr() for tensor in tensors]
        with on_device(key):
            _kernel[(self.programs,)](
                table([addresses], key.device),
                self.owners,
                self.rows,
                key,
                scales,
                HALF=BLOCK // 2,
                DTYPE=TYPES[tensors[0].dtype],
                ALIGNED=not any(address % 16 for address in addresses),
                num_warps=4,
            )


@triton.jit
def _circle(z):
    """Cosine and sine of 2π z / 2³² for uint32 z, accurate to float32.

    The nearest quarter turn is subtracted exactly. The remainder, within π/4, goes through the polynomials of Cephes'
    sinf and cosf. The argument reduction of libdevice would take longer.
    """
    quarters = (z + 0x20000000) >> 30
    x = (z - (quarters << 30)).to(tl.int32, bitcast=True).to(tl.float32) * 1.4629180792671596e-09
    y = x * x
    sine = x + x * y * (-1.6666654611e-1 + y * (8.3321608736e-3 - 1.9515295891e-4 * y))
    cosine = 1.0 - 0.5 * y + y * y * (4.166664568298827e-2 + y * (-1.388731625493765e-3 + 2.443315711809948e-5 * y))
    odd = quarters & 1 == 1
    c, s = tl.where(odd, sine, cosine), tl.where(odd, cosine, sine)
    return tl.where((quarters + 1) & 2 == 2, -c, c), tl.where(quarters & 2 == 2, -s, s)


@triton.jit
def _added(target, noise, inside, kept, DTYPE: tl.constexpr):
    value = tl.where(kept, tl.load(target, mask=inside, other=0.0).to(tl.float32), 0.0)
    tl.store(target, (value + noise).to(DTYPE), mask=inside)


@triton.jit
def _kernel(addresses, owners, rows, key_ptr, scales, HALF: tl.constexpr, DTYPE: tl.constexpr, ALIGNED: tl.constexpr):
    program = tl.program_id(0)
    row = rows + tl.load(owners + program) * 7
    tensor = tl.load(addresses + tl.load(row)).to(tl.pointer_type(DTYPE))
    parameter, first, start = tl.load(row + 1), tl.load(row + 2), tl.load(row + 3)
    count, before = tl.load(row + 4), tl.load(row + 5)
    pair = first // 2 + (program - before) * HALF + tl.arange(0, HALF)
    nothing = tl.zeros((HALF,), dtype=tl.uint32)
    x, y, z, _ = tl.philox(
        tl.load(key_ptr),
        (pair & 0xFFFFFFFF).to(tl.uint32),
        (pair >> 32).to(tl.uint32),
        nothing + parameter.to(tl.uint32),
        nothing,
    )
    # 64 bits for the radius, as in flash_clipping.philox.
    uniform = x.to(tl.float32) * 2.3283064365386963e-10 + (y.to(tl.float32) + 0.5) * 5.421010862427522e-20
    radius = tl.sqrt(-2.0 * tl.log(uniform))
    cosine, sine = _circle(z)
    noise = tl.join(radius * cosine, radius * sine).reshape(2 * HALF)
    noise *= tl.load(scales)
    kept = tl.load(scales + 1) != 0
    tensor += start
    # Numbers are drawn in pairs: with an odd `first` the number of the element before it is drawn too.
    drawn = 2 * (program - before) * HALF + tl.arange(0, 2 * HALF)
    if ALIGNED and tl.load(row + 6) == 1:
        _added(places(tensor, drawn, True), noise, within(drawn, count, True), kept, DTYPE)
    else:
        place = drawn - first % 2
        _added(tensor + place, noise, (place >= 0) & (place < count), kept, DTYPE)
