"""Which form of the Linear weight norm costs less."""


def prefers_direct(tokens: int, d_in: int, d_out: int, gram_cost: float = 1.0) -> bool:
    """Whether AᵀG (2·T·d_in·d_out FLOPs) costs no more than a triangular Gram (T²·(d_in + d_out) FLOPs).

    Args:
        gram_cost: time of a FLOP of the Gram form over that of the direct form.
    """
    return 2 * d_in * d_out <= gram_cost * tokens * (d_in + d_out)
