"""The workload: what is trained. All arms of a comparison share it."""

import itertools
import math
from enum import StrEnum

from pydantic import Field, FiniteFloat, model_validator

from service.contract.base import StrictModel

# Larger sizes are refused: a single tensor of them fits into no machine.
MAX_ELEMENTS = 2**36
MAX_STEPS = 1_000_000
IMAGE_CHANNELS = 3


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


class Family(StrEnum):
    """`transformer`: `SmallTransformerDP`; `convnet`: convolutions and GroupNorm on images; `lstm`: Opacus' DPLSTM."""

    TRANSFORMER = "transformer"
    CONVNET = "convnet"
    LSTM = "lstm"


class Sampling(StrEnum):
    """How batches are drawn: in the order of the data set, or each sample by itself with the sampling rate."""

    SEQUENTIAL = "sequential"
    POISSON = "poisson"


class Slices(StrEnum):
    """How ranks share a global batch: sizes that differ by at most one, in proportion to rank + 1, or rank 0 idle."""

    EVEN = "even"
    UNEVEN = "uneven"
    IDLE = "idle"


class Clipping(StrEnum):
    """`flat`: C is fixed; `adaptive`: C follows a quantile of the norms (Andrew et al. 2021), as Opacus does it."""

    FLAT = "flat"
    ADAPTIVE = "adaptive"


class LrSchedule(StrEnum):
    """The learning rate over the steps: constant, or down to zero along a line or a half cosine."""

    CONSTANT = "constant"
    LINEAR = "linear"
    COSINE = "cosine"


class ModelSpec(StrictModel):
    """The model: a small one of three families, with a classification or language-model head.

    `num_heads`, `mlp_ratio` and `causal` mean something to a transformer alone. A convnet's input is images: nothing
    that is about tokens applies to it, and `image_size` applies to nothing else.
    """

    family: Family = Field(Family.TRANSFORMER, description="Kind of model")
    vocab_size: int = Field(10_000, ge=2, le=10_000_000, description="Tokens in the vocabulary")
    hidden_size: int = Field(512, ge=1, le=65_536, description="Width of the model; channels of a convnet")
    num_heads: int = Field(8, ge=1, le=1_024, description="Attention heads")
    num_layers: int = Field(3, ge=1, le=1_000, description="Blocks")
    mlp_ratio: int = Field(4, ge=1, le=64, description="Width of the MLP as a multiple of hidden_size")
    num_classes: int = Field(10, ge=2, le=10_000_000, description="Classes of the classification head")
    max_length: int = Field(128, ge=1, le=10_000_000, description="Positions in the learned embedding")
    dropout: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Dropout probability; above 0 arms differ in their masks",
    )
    bias: bool = Field(True, description="Whether Linear layers have a bias")
    causal: bool = Field(False, description="Whether attention is causal; a language-model head forces it")
    head: Head = Field(Head.CLASSIFICATION, description="What the model predicts")
    image_size: int = Field(16, ge=4, le=4_096, description="Height and width of a convnet's images, in pixels")
    checkpointing: bool = Field(False, description="Recompute each block's activations in the backward pass")
    frozen: tuple[str, ...] = Field(
        (), max_length=100, description="Parameters that are not trained: patterns as of fnmatch, `blocks.0.*`"
    )

    @model_validator(mode="after")
    def _heads_divide_hidden(self) -> "ModelSpec":
        if self.family is Family.TRANSFORMER and self.hidden_size % self.num_heads:
            raise ValueError(f"hidden_size {self.hidden_size} is not divisible by num_heads {self.num_heads}")
        if self.family is Family.CONVNET and self.head is Head.LM:
            raise ValueError("a convnet has no language-model head")
        return self


class Workload(StrictModel):
    """Model, data, optimizer, privacy parameters, seed and number of steps.

    `batch_size` is global: it does not change with the world size. The synthetic data set is in a fixed
    order; the last batch of an epoch may be smaller. With Poisson sampling it is the expected size of a batch, and
    batches, which depend on `seed` alone, may be empty.
    """

    model: ModelSpec = ModelSpec()
    num_samples: int = Field(1_000, ge=1, le=100_000_000, description="Samples in the synthetic data set")
    batch_size: int = Field(32, ge=1, le=10_000_000, description="Global batch size, in samples")
    seq_len: int = Field(64, ge=1, le=10_000_000, description="Tokens per sample")
    padding: float = Field(0.0, ge=0, le=1, description="Largest share of a sample's positions that is padding")
    ignored: float = Field(
        0.0, ge=0, lt=1, description="Share of a language model's tokens whose target is ignored (ignore_index)"
    )
    sampling: Sampling = Field(Sampling.SEQUENTIAL, description="How global batches are drawn")
    slices: Slices = Field(Slices.EVEN, description="How ranks share a batch")
    empty_tensors: bool = Field(
        False,
        description="Give a rank without samples tensors without samples; otherwise one sample without weight",
    )
    virtual_steps: int = Field(
        1, ge=1, le=10_000, description="Backward passes per optimizer step, each with a part of the batch"
    )
    num_epochs: int = Field(1, ge=1, le=1_000_000, description="Passes over the data set")
    max_steps: int | None = Field(None, ge=1, description="Stop after this many optimizer steps")
    optimizer: OptimizerName = Field(OptimizerName.ADAM, description="Optimizer")
    lr: FiniteFloat = Field(1e-3, gt=0, description="Learning rate")
    lr_schedule: LrSchedule = Field(LrSchedule.CONSTANT, description="The learning rate over the steps")
    resume_at: int | None = Field(
        None, ge=1, description="After this step save model, optimizer and schedules, build all anew, load, go on"
    )
    noise_multiplier: FiniteFloat = Field(1.0, ge=0, description="σ; 0 means ε is infinite")
    noise_decay: FiniteFloat = Field(1.0, gt=0, le=1, description="Factor on σ after every `noise_decay_every` steps")
    noise_decay_every: int = Field(1, ge=1, description="Steps between decays of σ")
    clipping: Clipping = Field(Clipping.FLAT, description="Whether C stays or follows the norms")
    max_grad_norm: FiniteFloat = Field(1.0, gt=0, description="C, the L2 clipping bound per sample")
    delta: float = Field(1e-5, gt=0, lt=1, description="δ at which ε is reported")
    loss_reduction: LossReduction = Field(LossReduction.MEAN, description="How losses of a batch are reduced")
    seed: int = Field(42, ge=0, lt=2**63, description="Seed of weights, data and noise")

    @model_validator(mode="after")
    def _sizes_make_sense(self) -> "Workload":
        if self.seq_len > self.model.max_length:
            raise ValueError(f"seq_len {self.seq_len} exceeds model.max_length {self.model.max_length}")
        if self.ignored and self.model.head is not Head.LM:
            raise ValueError("ignored tokens need a language-model head: model.head lm")
        if self.resume_at is not None and self.resume_at >= self.num_steps:
            raise ValueError(f"resume_at {self.resume_at} is not before the last of {self.num_steps} steps")
        if self.model.head is Head.LM and self.seq_len < 2:
            raise ValueError("a language-model head needs seq_len of at least 2")
        if self.model.family is Family.CONVNET and self.padding:
            raise ValueError("a convnet's images have no padding")
        if self.clipping is Clipping.ADAPTIVE and self.sampling is Sampling.POISSON:
            raise ValueError("adaptive clipping divides by the number of samples, which poisson sampling can make 0")
        if self.num_samples * self._elements_per_sample > MAX_ELEMENTS:
            raise ValueError(f"the data set exceeds {MAX_ELEMENTS} tokens or pixels")
        if self.expected_batch_size == 0:
            raise ValueError(
                f"Opacus reckons the expected batch as int({self.num_samples} × (1 / {self.steps_per_epoch})), which "
                "floating point makes 0, and divides by it: choose another num_samples or batch_size"
            )
        if self.num_steps > MAX_STEPS:
            raise ValueError(f"the workload has {self.num_steps} steps, more than {MAX_STEPS}")
        return self

    @property
    def _elements_per_sample(self) -> int:
        return IMAGE_CHANNELS * self.model.image_size**2 if self.model.family is Family.CONVNET else self.seq_len

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

    def sigma(self, step: int) -> float:
        """σ at `step`, counted from 1; multiplied step by step, as Opacus does, so that ε has the same bits."""
        if self.noise_decay == 1:
            return self.noise_multiplier
        decays = (step - 1) // self.noise_decay_every
        return math.prod(itertools.repeat(self.noise_decay, decays), start=self.noise_multiplier)

    @property
    def expected_batch_size(self) -> int:
        """The divisor of the summed gradient, as Opacus' engine reckons it (rounded down)."""
        return int(self.num_samples * self.sample_rate)
