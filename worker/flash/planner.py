"""Which form of the Linear weight norm does fewer multiplications."""


def prefers_direct(tokens: int, d_in: int, d_out: int) -> bool:
    """Whether AᵀG (2·T·d_in·d_out FLOPs) costs no more than a triangular Gram (T²·(d_in + d_out) FLOPs)."""
    return 2 * d_in * d_out <= tokens * (d_in + d_out)
