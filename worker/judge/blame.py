"""What a difference points at: a factor that all parameters share, a kind of parameter, or a rank."""

import math
from collections.abc import Iterator, Sequence

from service.contract import FLOOR, ParameterRecord, Sketch, StepRecord, deal
from worker.judge.pair import RecordPair, parameters_of
from worker.judge.sketches import factor

StepSides = tuple[StepRecord, StepRecord] | None

# How near a factor must be to a known one, and the largest share of a tensor that one factor may leave unexplained.
NEAR, UNEXPLAINED = 0.01, 0.02


def common_factor(pair: RecordPair, sides: StepSides, broken: Sequence[str], noise: bool = False) -> float | None:
    """The factor by which all `broken` parameters differ, if there is one and most parameters are broken."""
    if sides is None or not broken:
        return None
    expected, actual = (
        {name: _of(parameter, noise) for name, parameter in parameters_of(side).items()} for side in sides
    )
    if len(broken) < max(1, len(expected) // 2):
        return None
    fitted = [factor(one, other) for name in broken if (one := expected.get(name)) and (other := actual.get(name))]
    fitted = [(scale, rest) for scale, rest in fitted if math.isfinite(scale)]
    if not fitted or any(rest > UNEXPLAINED for _, rest in fitted):
        return None
    scales = sorted(scale for scale, _ in fitted)
    middle = scales[len(scales) // 2]
    return middle if all(abs(scale - middle) <= UNEXPLAINED * abs(middle) for scale in scales) else None


def _of(parameter: ParameterRecord, noise: bool) -> Sketch | None:
    return parameter.noise if noise else parameter.clipped_grad


def factor_in_words(pair: RecordPair, value: float, step: StepRecord | None) -> str | None:
    """What a factor probably is, such as `0.5 × the reference's, which is 1 / the world size`; None if not known."""
    if not math.isfinite(value):
        return None
    names = [name for known, name in _known_factors(pair, step) if abs(value - known) <= NEAR * abs(known)]
    return f"{value:.4g} × the {pair.names[0]}'s, which is {' or '.join(dict.fromkeys(names))}" if names else None


def _known_factors(pair: RecordPair, step: StepRecord | None) -> Iterator[tuple[float, str]]:
    workload = pair.comparison.workload
    worlds = {record.start.world_size for record in (pair.expected, pair.actual) if record.start}
    sizes = [(float(world), "the world size") for world in sorted(worlds) if world > 1]
    if step is not None and step.batch_size:
        sizes.append((float(step.batch_size), "the batch size"))
        sizes.append((step.batch_size / workload.expected_batch_size, "batch size / expected batch size"))
        sizes += [(step.batch_size / world, "a rank's batch size") for world in sorted(worlds) if world > 1]
    sizes += [
        (float(workload.expected_batch_size), "the expected batch size"),
        (float(workload.virtual_steps), "the number of virtual steps"),
        (workload.max_grad_norm, "C"),
        (workload.noise_multiplier, "σ"),
    ]
    for size, name in sizes:
        if size > 0 and abs(size - 1) > 2 * NEAR:
            yield size, name
            yield 1 / size, f"1 / {name}"
            if name == "the world size":
                yield math.sqrt(size), f"√ {name}"
                yield 1 / math.sqrt(size), f"1 / √ {name}"


LAYER_KINDS = (
    ("biases", lambda name: name.endswith("bias")),
    ("normalisation layers", lambda name: "norm" in name),
    ("embeddings", lambda name: "embed" in name),
    ("convolutions", lambda name: "conv" in name),
    ("recurrent layers", lambda name: "lstm" in name),
    ("linear layers", lambda name: not any(word in name for word in ("norm", "embed", "conv", "lstm"))),
)


def only_kind(pair: RecordPair, broken: Sequence[str]) -> str | None:
    """What the broken parameters have in common, unless all broke: one name, one layer, or a kind of layer."""
    names = list(pair.sizes)
    if not broken or len(broken) == len(names):
        return None
    if len(broken) == 1:
        return broken[0]
    layers = {name.rpartition(".")[0] for name in broken}
    if len(layers) == 1:
        return f"the parameters of {layers.pop()}"
    return next(
        (kind for kind, is_one in LAYER_KINDS if all(map(is_one, broken)) and not all(map(is_one, names))),
        None,
    )


def untrained(pair: RecordPair, sides: StepSides) -> tuple[str, ...]:
    """Parameters whose gradient is zero in the judged arm and not in the other, the largest first."""
    if sides is None:
        return ()
    expected, actual = (parameters_of(side) for side in sides)
    whole = math.hypot(*(parameter.clipped_grad.norm for parameter in expected.values()))
    gone = [
        (parameter.clipped_grad.norm, name)
        for name, parameter in expected.items()
        if name in actual
        and actual[name].clipped_grad.norm == 0
        and parameter.clipped_grad.norm > pair.default("gradient") * FLOOR * whole * math.sqrt(pair.share(name))
    ]
    return tuple(name for _, name in sorted(gone, reverse=True))


def rank_of_samples(pair: RecordPair, samples: Sequence[int], step: StepRecord) -> int | None:
    """The rank that computed all of these samples, if there are several ranks and it is one alone."""
    worlds = {record.start.world_size for record in (pair.expected, pair.actual) if record.start}
    if not samples or max(worlds, default=1) == 1 or len(samples) == step.batch_size:
        return None
    shares = deal(pair.comparison.workload, step.batch_size, max(worlds))
    ranks = {rank for sample in samples for part in shares for rank, share in enumerate(part) if sample in share}
    return ranks.pop() if len(ranks) == 1 else None


def rank_of_noise(pair: RecordPair, sides: StepSides) -> int | None:
    """The rank at fault: one that added no noise to its shards, or one that added noise to replicated parameters."""
    if sides is None:
        return None
    actual = parameters_of(sides[1])
    heads = [parameter.noise_heads for parameter in actual.values() if parameter.noise_heads]
    if len({len(ranks) for ranks in heads}) != 1:  # none recorded, or not of the same ranks
        return None
    held = [any(ranks[rank] for ranks in heads) for rank in range(len(heads[0]))]
    noisy = [any(any(ranks[rank]) for ranks in heads) for rank in range(len(heads[0]))]
    sharded = pair.arms[-1].mode.sharded
    odd = [rank for rank, has in enumerate(noisy) if held[rank] and (not has if sharded else has and rank > 0)]
    return odd[0] if len(odd) == 1 else None
