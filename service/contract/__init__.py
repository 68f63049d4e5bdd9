"""The language of Clipwatch as pydantic models: workload, arm, comparison, record, gate, verdict.

Every other room speaks it; this one imports none of them and does no I/O. JSON written from these models
encodes non-finite floats as the strings "NaN", "Infinity" and "-Infinity", and reads them back.
"""

from service.contract.arm import Arm, Device, Dtype, Kernels, Mode, Provider
from service.contract.base import plain
from service.contract.check import SHA, Target, check_verdict, entries_of
from service.contract.clipping import CLIP_EPS, gradient_sigma, unclipped_num_std
from service.contract.comparison import ROLES, Comparison, Tolerances
from service.contract.gates import GATES, PLOTS, Chain, GateInfo, HeldTo
from service.contract.history import (
    BAD,
    NEWS,
    EntryHealth,
    EntryRun,
    Transition,
    health,
    last_decided,
    transitions,
)
from service.contract.limits import (
    DEFAULT_LIMITS,
    DRIFT,
    FALSE_ALARM,
    FLIPPED,
    FLOOR,
    GRADIENT_ERROR,
    ROUNDINGS,
    SKETCHED,
    Limits,
)
from service.contract.record import (
    RECORD_FILE,
    ArmEnd,
    ArmError,
    ArmRecord,
    ArmSpec,
    ArmStart,
    ErrorKind,
    ParameterRecord,
    ParameterStart,
    Sketch,
    StepRecord,
)
from service.contract.rules import Pulls, Rule, Rules
from service.contract.slices import Shares, deal
from service.contract.suite import Suite
from service.contract.verdict import Finding, Gate, Judgement, Subject, Verdict
from service.contract.workload import (
    IMAGE_CHANNELS,
    Clipping,
    Family,
    Head,
    LossReduction,
    LrSchedule,
    ModelSpec,
    OptimizerName,
    Sampling,
    Slices,
    Workload,
)

__all__ = [
    "BAD",
    "CLIP_EPS",
    "DEFAULT_LIMITS",
    "DRIFT",
    "FALSE_ALARM",
    "FLIPPED",
    "FLOOR",
    "GATES",
    "GRADIENT_ERROR",
    "IMAGE_CHANNELS",
    "NEWS",
    "PLOTS",
    "RECORD_FILE",
    "ROLES",
    "ROUNDINGS",
    "SHA",
    "SKETCHED",
    "Arm",
    "ArmEnd",
    "ArmError",
    "ArmRecord",
    "ArmSpec",
    "ArmStart",
    "Chain",
    "Clipping",
    "Comparison",
    "Device",
    "Dtype",
    "EntryHealth",
    "EntryRun",
    "ErrorKind",
    "Family",
    "Finding",
    "Gate",
    "GateInfo",
    "Head",
    "HeldTo",
    "Judgement",
    "Kernels",
    "Limits",
    "LossReduction",
    "LrSchedule",
    "Mode",
    "ModelSpec",
    "OptimizerName",
    "ParameterRecord",
    "ParameterStart",
    "Provider",
    "Pulls",
    "Rule",
    "Rules",
    "Sampling",
    "Shares",
    "Sketch",
    "Slices",
    "StepRecord",
    "Subject",
    "Suite",
    "Target",
    "Tolerances",
    "Transition",
    "Verdict",
    "Workload",
    "check_verdict",
    "deal",
    "entries_of",
    "gradient_sigma",
    "health",
    "last_decided",
    "plain",
    "transitions",
    "unclipped_num_std",
]
