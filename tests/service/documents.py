"""Comparisons and results for tests."""

from service.contract import (
    Arm,
    ArmEnd,
    ArmRecord,
    ArmStart,
    Comparison,
    Device,
    Finding,
    Gate,
    Kernels,
    Mode,
    ModelSpec,
    ParameterRecord,
    Sketch,
    StepRecord,
    Subject,
    Verdict,
    Workload,
)
from service.store import ArmResult, Artifact, AttemptResult

NAN, INF = float("nan"), float("inf")


def tiny(
    name: str | None = None,
    reference: Mode = Mode.GHOST,
    candidate: Mode = Mode.GHOST_FSDP,
    seed: int = 42,
    num_samples: int = 8,
    oracle_steps: int = 0,
) -> Comparison:
    """A comparison that trains within seconds on one core."""
    model = ModelSpec(hidden_size=8, num_heads=2, num_layers=1, vocab_size=50, max_length=8)
    workload = Workload(model=model, seq_len=4, num_samples=num_samples, batch_size=4, seed=seed)
    return Comparison(
        name=name,
        workload=workload,
        reference=Arm(mode=reference, device=Device.CPU, kernels=Kernels.TORCH),
        candidate=Arm(mode=candidate, device=Device.CPU, kernels=Kernels.TORCH),
        oracle_steps=oracle_steps,
    )


def start(num_steps: int = 2) -> ArmStart:
    return ArmStart(
        num_parameters=7,
        num_steps=num_steps,
        world_size=1,
        device="cpu",
        versions={"torch": "2.13.0", "opacus": "1.6.0"},
    )


SKETCH = Sketch(norm=NAN, total=1.0, projections=[1.0] * 8)


def step(number: int, loss: float = 1.5) -> StepRecord:
    return StepRecord(
        step=number,
        loss=loss,
        batch_size=4,
        grad_norms=[0.5, NAN, INF, 2.0],
        clip_factors=[1.0, NAN, 0.0, 0.5],
        parameters={"head.weight": ParameterRecord(clipped_grad=SKETCH, noise=SKETCH, value=SKETCH)},
        clipped_grad_norm=-INF,
        parameter_norm=3.25,
        step_time=0.01,
        peak_memory=2**40,
    )


def result(verdict: Verdict = Verdict.FAILED) -> AttemptResult:
    """A result with every kind of row and every kind of number."""
    record = ArmRecord(
        start=start(), steps=[step(1), step(2, NAN)], end=ArmEnd(num_steps=2, epsilon=INF, delta=1e-5, duration=0.1)
    )
    return AttemptResult(
        verdict=verdict,
        gates=[
            Gate(metric="loss", passed=False, observed=NAN, limit=1e-4, first_step=2, detail="loss is NaN"),
            Gate(metric="parameter_norm", passed=True, observed=0.1 + 0.2, limit=1e-4),
            Gate(metric="epsilon", passed=True, observed=INF, limit=0.0),
            Gate(metric="grad_norms", passed=False, observed=None, limit=1e-3),
            Gate(
                metric="oracle_clipped_grad",
                subject=Subject.CANDIDATE,
                passed=False,
                observed=1.0,
                limit=1e-4,
                first_step=1,
                parameter="blocks.0.mlp_norm.weight",
            ),
        ],
        findings=[
            Finding(
                metric="loss",
                subject=Subject.REFERENCE,
                step=2,
                parameter="head.weight",
                rank=1,
                message="loss is NaN\x00",
            )
        ],
        arms={"reference": ArmResult(record, reused_from="cmp_earlier/2"), "candidate": ArmResult(ArmRecord())},
        artifacts=[Artifact("loss.png", "image/png", "attempts/1/loss.png", 3)],
    )
