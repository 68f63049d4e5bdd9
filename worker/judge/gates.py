"""Every gate: how it is judged, and what its failure usually means.

`service.contract.gates` holds the other half of each entry (title, what it is held to, chain). A gate is added in these
two files; `tests/worker/judge/test_registry.py` proves that both and the documents know it.
"""

from collections.abc import Callable
from dataclasses import dataclass

from service.contract import GATES, GateInfo, HeldTo, Subject
from worker.judge import causes
from worker.judge.accounting import epsilon_gate, epsilon_oracle
from worker.judge.audit import noise_audit
from worker.judge.causes import Cause, likely
from worker.judge.determinism import determinism
from worker.judge.pair import GateResult, RecordPair
from worker.judge.parameters import clipped_grads, noises, values
from worker.judge.scalars import any_shows_factors, clip_factors, judged_shows_factors, numbers, parameter_norms
from worker.judge.steps import steps_gate
from worker.judge.stepwise import StepLimit


@dataclass(frozen=True)
class GateRule:
    """A gate.

    `measure` is a metric of each step with its limit, or a function that judges whole records. `explain` says the
    likely cause of a failure. A gate that is `private` is left out without privacy, and any gate where `when` says no.
    """

    name: str
    measure: StepLimit | Callable[[RecordPair], GateResult]
    explain: Cause
    private: bool = False
    when: Callable[[RecordPair], bool] = lambda pair: True

    @property
    def info(self) -> GateInfo:
        return GATES[self.name]

    def applies(self, pair: RecordPair) -> bool:
        """Whether these records are held to this gate."""
        of_arms = pair.subject is Subject.COMPARISON
        held_to = {
            HeldTo.REFERENCE: of_arms,
            HeldTo.ORACLE: not of_arms and pair.oracle is not None,
            HeldTo.THEORY: not of_arms,
            HeldTo.REPETITION: pair.repeat is not None,
        }
        return held_to[self.info.held_to] and (pair.private or not self.private) and self.when(pair)

    def judge(self, pair: RecordPair) -> GateResult:
        """The gate's result for these records."""
        return self.measure.judge(self.name, pair) if isinstance(self.measure, StepLimit) else self.measure(pair)


RULES = (
    GateRule("steps", steps_gate, likely("the loader gave another number of batches, or a run ended early")),
    GateRule("loss", StepLimit(numbers("loss"), "loss", drifts=True), causes.loss),
    GateRule("oracle_loss", StepLimit(numbers("loss", least=0.0), "sample", drifts=True), causes.loss),
    GateRule(
        "grad_norms",
        StepLimit(numbers("grad_norms", least=1.0), "grad_norm", drifts=True),
        causes.sample_norms,
        private=True,
    ),
    GateRule(
        "oracle_grad_norms", StepLimit(numbers("grad_norms", least=0.0), "sample", drifts=True), causes.sample_norms
    ),
    GateRule(
        "clip_factors",
        StepLimit(clip_factors, "sample", drifts=True),
        causes.clip_factors,
        private=True,
        when=any_shows_factors,
    ),
    GateRule(
        "oracle_clip_factors",
        StepLimit(clip_factors, "sample", drifts=True),
        causes.clip_factors,
        when=judged_shows_factors,
    ),
    GateRule(
        "grad_norm_mean",
        StepLimit(numbers("grad_norm_mean", least=1.0), "grad_norm", drifts=True),
        causes.summary_of_norms,
        private=True,
    ),
    GateRule(
        "grad_norm_max",
        StepLimit(numbers("grad_norm_max", least=1.0), "grad_norm", drifts=True),
        causes.summary_of_norms,
        private=True,
    ),
    GateRule("clipped_grad", StepLimit(clipped_grads, "gradient", drifts=True), causes.clipped_grad),
    GateRule("oracle_clipped_grad", StepLimit(clipped_grads, "gradient", drifts=True), causes.clipped_grad),
    GateRule(
        "clipped_grad_norm",
        StepLimit(numbers("clipped_grad_norm", least=1.0), "grad_norm", drifts=True),
        causes.clipped_grad_norm,
    ),
    GateRule("noise", StepLimit(noises, "noise"), causes.noise, private=True),
    GateRule("noise_audit", noise_audit, causes.noise_audit, private=True),
    GateRule("parameters", StepLimit(values, "update"), causes.parameters),
    GateRule("oracle_parameters", StepLimit(values, "oracle_update"), causes.parameters),
    GateRule(
        "parameter_norm",
        StepLimit(parameter_norms, "parameter_norm"),
        likely("gradients before noise agree: the noise or the optimizer differs"),
    ),
    GateRule(
        "epsilon",
        epsilon_gate,
        likely(
            "training agrees: the accountant was given another σ, sampling rate or number of steps, or it rounds "
            "differently"
        ),
        private=True,
    ),
    GateRule(
        "epsilon_oracle",
        epsilon_oracle,
        likely("the accountant was given another σ, sampling rate or number of steps than those of the workload"),
        private=True,
    ),
    GateRule(
        "determinism",
        determinism,
        likely(
            "kernels that sum in another order in each run, or a generator without a seed",
            advice="use deterministic kernels (torch.use_deterministic_algorithms) and one seed for all generators",
        ),
    ),
)
assert [rule.name for rule in RULES] == list(GATES), "service.contract.gates and this table must list the same gates"
