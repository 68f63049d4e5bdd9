"""The language of Clipwatch as pydantic models: workload, arm, comparison, record, gate, verdict.

Every other room speaks it; this one imports none of them and does no I/O. JSON written from these models
encodes non-finite floats as the strings "NaN", "Infinity" and "-Infinity", and reads them back.
"""

from service.contract.arm import Arm, Device, Dtype, Kernels, Mode
from service.contract.base import plain
from service.contract.comparison import Comparison, Tolerances
from service.contract.record import RECORD_FILE, ArmEnd, ArmError, ArmRecord, ArmSpec, ArmStart, ErrorKind, StepRecord
from service.contract.verdict import Finding, Gate, Judgement, Verdict
from service.contract.workload import Head, LossReduction, ModelSpec, OptimizerName, Workload

__all__ = [
    "RECORD_FILE",
    "Arm",
    "ArmEnd",
    "ArmError",
    "ArmRecord",
    "ArmSpec",
    "ArmStart",
    "Comparison",
    "Device",
    "Dtype",
    "ErrorKind",
    "Finding",
    "Gate",
    "Head",
    "Judgement",
    "Kernels",
    "LossReduction",
    "Mode",
    "ModelSpec",
    "OptimizerName",
    "StepRecord",
    "Tolerances",
    "Verdict",
    "Workload",
    "plain",
]
