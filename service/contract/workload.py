"""The workload: what is trained. All arms of a comparison share it."""

import math
from enum import StrEnum

from pydantic import Field, FiniteFloat, model_validator

from service.contract.base import Document

# Absurd sizes are refused at the door: past these a single tensor no longer fits any machine we know of.
MAX_ELEMENTS = 2**36
MAX_STEPS = 1_000_000


class Head(StrEnum):
    """What the model predicts: one class per sequence, or the next token at every position."""

    CLASSIFICATION = "classification"
    LM = "lm"


class OptimizerName(StrEnum):
    ADAM = "adam"
    ADAMW = "adamw"
    SGD = "sgd"


class LossReduction(StrEnum):
    MEAN = "mean"
    SUM = "sum"


class ModelSpec(Document):
    """`SmallTransformerDP`: pre-norm transformer encoder with a classification or language-model head."""

    vocab_size: int = Field(10_000, ge=2, le=10_000_000)
    hidden_size: int = Field(512, ge=1, le=65_536)
    num_heads: int = Field(8, ge=1, le=1_024)
    num_layers: int = Field(3, ge=1, le=1_000)
    mlp_ratio: int = Field(4, ge=1, le=64, description="Width of the MLP as a multiple of hidden_size")
    num_classes: int = Field(10, ge=2, le=10_000_000)
    max_length: int = Field(128, ge=1, le=10_000_000, description="Positions in the learned embedding")
    dropout: float = Field(0.0, ge=0, lt=1, description="0 unless arms need not agree: masks differ by rank")
    bias: bool = Field(True, description="Whether Linear layers have a bias")
    causal: bool = Field(False, description="Whether attention is causal; a language-model head forces it")
    head: Head = Head.CLASSIFICATION

    @model_validator(mode="after")
    def _heads_divide_hidden(self) -> "ModelSpec":
        if self.hidden_size % self.num_heads:
            raise ValueError(f"hidden_size {self.hidden_size} is not divisible by num_heads {self.num_heads}")
        return self


class Workload(Document):
    """Model, data, optimizer, privacy parameters, seed and number of steps.

    `batch_size` is global: it does not change with the world size. The synthetic data set is in a fixed
    order; the last batch of an epoch may be smaller.
    """

    model: ModelSpec = ModelSpec()
    num_samples: int = Field(1_000, ge=1, le=100_000_000)
    batch_size: int = Field(32, ge=1, le=10_000_000, description="Global batch size, in samples")
    seq_len: int = Field(64, ge=1, le=10_000_000, description="Tokens per sample")
    padding: float = Field(0.0, ge=0, le=1, description="Largest share of a sample's positions that is padding")
    num_epochs: int = Field(1, ge=1, le=1_000_000)
    max_steps: int | None = Field(None, ge=1, description="Stop after this many optimizer steps")
    optimizer: OptimizerName = OptimizerName.ADAM
    lr: FiniteFloat = Field(1e-3, gt=0, description="Learning rate")
    noise_multiplier: FiniteFloat = Field(1.0, ge=0, description="σ; 0 means ε is infinite")
    max_grad_norm: FiniteFloat = Field(1.0, gt=0, description="C, the L2 clipping bound per sample")
    delta: float = Field(1e-5, gt=0, lt=1, description="δ at which ε is reported")
    loss_reduction: LossReduction = LossReduction.MEAN
    seed: int = Field(42, ge=0, lt=2**63)

    @model_validator(mode="after")
    def _sizes_make_sense(self) -> "Workload":
        if self.seq_len > self.model.max_length:
            raise ValueError(f"seq_len {self.seq_len} exceeds model.max_length {self.model.max_length}")
        if self.model.head is Head.LM and self.seq_len < 2:
            raise ValueError("a language-model head needs seq_len of at least 2")
        if self.num_samples * self.seq_len > MAX_ELEMENTS:
            raise ValueError(f"num_samples × seq_len exceeds {MAX_ELEMENTS} tokens")
        if self.expected_batch_size == 0:
            raise ValueError(
                f"Opacus reckons the expected batch as int({self.num_samples} × (1 / {self.steps_per_epoch})), which "
                "floating point makes 0, and divides by it: choose another num_samples or batch_size"
            )
        if self.num_steps > MAX_STEPS:
            raise ValueError(f"the workload has {self.num_steps} steps, more than {MAX_STEPS}")
        return self

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(self.num_samples / self.batch_size)

    @property
    def num_steps(self) -> int:
        """Optimizer steps in all."""
        steps = self.num_epochs * self.steps_per_epoch
        return steps if self.max_steps is None else min(steps, self.max_steps)

    @property
    def sample_rate(self) -> float:
        """Probability that a sample is in a batch, as Opacus' engine reckons it: 1 / batches per epoch."""
        return 1 / self.steps_per_epoch

    @property
    def expected_batch_size(self) -> int:
        """The divisor of the summed gradient, as Opacus' engine reckons it (rounded down)."""
        return int(self.num_samples * self.sample_rate)
