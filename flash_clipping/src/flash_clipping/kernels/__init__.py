"""The Triton kernels: squared per-sample norms that never write a per-sample gradient or a T×T matrix.

Each file holds one operation. All are deterministic: a program writes the square sum of its tile to a buffer of
partial sums, (B, tiles) in float32, and torch sums that. Inputs may have any strides (TMA reads those it can);
float32, bfloat16 and float16 are accumulated in float32. Blocks are looked up by shape and dtype in tables that
`tests/benchmarks` measured on an H200: nothing is tuned while a model trains.
"""

from flash_clipping.kernels.column_sums import column_sums
from flash_clipping.kernels.embedding import embedding_weight
from flash_clipping.kernels.layer_norm import group_norm_gradients, layer_norm_gradients, rms_norm_gradients
from flash_clipping.kernels.linear import linear_weight, linear_weights
from flash_clipping.kernels.linear_direct import linear_direct, linear_gradients, linear_product
from flash_clipping.kernels.linear_gram import linear_gram
from flash_clipping.kernels.token_sums import token_sums
from flash_clipping.kernels.weighted import all_scaled, scaled, weighted_sum

__all__ = [
    "all_scaled",
    "column_sums",
    "embedding_weight",
    "group_norm_gradients",
    "layer_norm_gradients",
    "linear_direct",
    "linear_gradients",
    "linear_gram",
    "linear_product",
    "linear_weight",
    "linear_weights",
    "rms_norm_gradients",
    "scaled",
    "token_sums",
    "weighted_sum",
]
