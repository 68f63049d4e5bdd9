"""The Triton kernels. They compute squared per-sample norms without a per-sample gradient or a T × T matrix in memory.

Each file holds one operation. All operations are deterministic: a program writes the sum of squares of its tile to a
buffer of partial sums, (B, tiles) in float32, and torch adds these up. Inputs are float32, bfloat16 or float16, with
any strides, and are accumulated in float32. Block sizes come from tables by shape and dtype, which were measured on an
H200 (docs/flash.md, "Speed of the norms"). Nothing is tuned while a model trains.
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
