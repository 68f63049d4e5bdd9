"""Private steps replayed as CUDA graphs: forward, loss, backward, norms, clipping, noise and optimizer.

    step = CapturedStep(model, optimizer, criterion, batch_size=64)
    for inputs, targets in loader:
        result = step(inputs, targets)
        scheduler.step()

A graph has fixed shapes, and a Poisson sample has not. So the step works on physical batches of `batch_size` samples.
It fills a smaller batch up with copies of its own samples and gives the copies a clip factor of exactly zero. It takes
a larger batch in several parts. An empty batch gives noise alone. Noise, divisor and accounting are the optimizer's.
After a step, `p.grad` is None.
"""

import logging
import random
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from flash_clipping.criterion import FlashCriterion, FlashLoss, per_sample
from flash_clipping.module import GradSampleModuleFlash, GradSampleModuleFlashFSDP
from flash_clipping.optimizer import DPOptimizerFlash, FSDPOptimizerFlash
from flash_clipping.provenance import refuse_flags

log = logging.getLogger(__name__)

Batch = tuple[torch.Tensor, ...]
# Entries of a parameter group that may change without a new graph; all others are fixed when a graph is captured.
_READ_AT_REPLAY = {"params", "lr", "capturable"}


class CaptureError(RuntimeError):
    """A step cannot be captured in a CUDA graph; the message names what is in the way."""


@dataclass(frozen=True)
class StepResult:
    """What a step saw: losses and gradient norms of its samples, both (n,), in the order of the batch."""

    losses: torch.Tensor
    norms: torch.Tensor


class CapturedStep:
    """Takes private training steps, as CUDA graphs where they can be captured.

    Replays give the bits of the same step without graphs. A new learning rate, clipping norm or noise multiplier needs
    no new graph. Each shape of a batch, beyond its first dimension, has graphs of its own.
    """

    def __init__(
        self,
        module: GradSampleModuleFlash,
        optimizer: DPOptimizerFlash,
        criterion: FlashCriterion,
        *,
        batch_size: int,
        forward: Callable[..., FlashLoss] | None = None,
        capture: Literal["auto"] | bool = "auto",
        max_graphs: int = 8,
    ):
        """
        Args:
            module, optimizer, criterion: what `make_private` returned.
            batch_size: samples of one physical batch.
            forward: from the tensors of a batch to the loss of `criterion`; by default the batch is (inputs, targets)
                and the loss criterion(module(inputs), targets). Every tensor's first dimension is the batch.
            capture: True raises `CaptureError` where a step cannot be captured, "auto" runs it without a graph and logs
                the reason once, False never captures.
            max_graphs: shapes of which graphs are kept; the least recently used is dropped.

        Raises:
            CaptureError: `capture=True` with a sharded model, a model that is not on one CUDA device, or noise that
                Opacus draws.
            ValueError: a `batch_size` or `max_graphs` below 1.
        """
        if batch_size < 1 or max_graphs < 1:
            raise ValueError("batch_size and max_graphs must be at least 1")
        self.module, self.optimizer, self.batch_size = module, optimizer, batch_size
        self.reason: str | None = None
        self._forward = forward or (lambda inputs, targets: criterion(module(inputs), targets))
        self._capture, self._max_graphs = capture, max_graphs
        self._graphs: OrderedDict[Any, _Bucket | None] = OrderedDict()
        # One for all graphs: they are replayed one after another, and keep nothing from one replay to the next.
        self.pool = torch.cuda.graph_pool_handle() if torch.cuda.is_available() else None
        self._settings = _Settings(module, optimizer)
        if capture is False:
            self.reason = "capture=False"
        elif reason := _obstacle(module, optimizer):
            self._give_up(reason)

    @property
    def captured(self) -> bool:
        """Whether steps are captured, as far as is known; `reason` says why not."""
        return self.reason is None

    def __call__(self, *batch: torch.Tensor) -> StepResult:
        """One optimizer step on a logical batch of any number of samples."""
        sizes = {len(tensor) for tensor in batch}
        if len(sizes) != 1:
            raise ValueError(f"the tensors of a batch disagree about the number of samples: {sorted(sizes)}")
        optimizer, settings = self.optimizer, self._settings
        if optimizer.holds_sums():
            raise ValueError(
                "a backward has left clipped sums: a CapturedStep takes whole steps. Call zero_grad() first"
            )
        optimizer.sums.begin(optimizer.params)
        found = tuple(tensor.to(settings.device, non_blocking=True) for tensor in batch)
        parts = [tuple(t[at : at + self.batch_size] for t in found) for at in range(0, len(found[0]), self.batch_size)]
        settings.update()
        if self.captured and parts:
            key = tuple((t.shape[1:], t.dtype) for t in parts[0]), settings.fixed()
            if key in self._graphs:
                try:
                    return self._replay(key, parts)
                except CaptureError as error:
                    self._give_up(str(error))
            else:
                self._expect(key)
        return self._eager(parts)

    def _eager(self, parts: Sequence[Batch]) -> StepResult:
        results, total = [], None
        for part in parts:
            result, sums = self._clipped(*_filled(part, self.batch_size))
            n = len(part[0])
            results.append(StepResult(result.losses[:n], result.norms[:n]))
            total = sums if total is None else total.added(sums)
        if total is None:
            total = _Sums([torch.zeros_like(p) for p in self.optimizer.params], self._settings.one)
        if self._raises and self._settings.device.type != "cuda":
            refuse_flags(float(not total.finite.item()), 0.0)
        self._finish(total)
        self._stepped(total.flags())
        joined = _joined(results, self._settings.device)
        self.module.per_sample_gradient_norms = joined.norms
        return joined

    def _clipped(self, batch: Batch, mask: torch.Tensor) -> tuple[StepResult, "_Sums"]:
        """Losses and norms of a physical batch, and for each parameter its sum of clipped gradients."""
        module, parameters = self.module, self.optimizer.params
        losses = per_sample(self._forward(*batch).loss_per_sample)
        # A graph reads it at each replay.
        module.max_grad_norm = self._settings.max_grad_norm
        try:
            factors = module.norm_pass(losses)
            module.write_gradients(torch.where(mask, factors, 0.0), set(parameters))
            gradients = [p.grad for p in parameters]
        finally:
            module.max_grad_norm = self.optimizer.max_grad_norm
            for p in parameters:
                p.grad = None
        norms = module.per_sample_gradient_norms
        return StepResult(losses.detach(), norms), _Sums(gradients, (norms.isfinite() | ~mask).all().view(1))

    def _finish(self, sums: "_Sums") -> None:
        """Noise, division and the optimizer's update."""
        settings, optimizer = self._settings, self.optimizer
        deviation: float | torch.Tensor = 0.0
        if settings.noisy:
            on_device = optimizer.counter is not None and settings.device.type == "cuda"
            deviation = settings.deviation if on_device else optimizer.noise_multiplier * optimizer.max_grad_norm
        with settings.capturable():
            optimizer.update(sums.gradients, deviation, sums.finite if self._raises else None)

    def _stepped(self, flags: torch.Tensor) -> None:
        """What a step leaves on the host: the accountant's count, and whether all gradients were finite."""
        optimizer = self.optimizer
        # As users do before a step: a parameter that is frozen next must not keep a gradient.
        optimizer.zero_grad()
        if optimizer.step_hook:
            optimizer.step_hook(optimizer)
        optimizer._is_last_step_skipped = False
        if self._raises and flags.is_cuda:
            optimizer.deferred.note(flags)
            # This step is queued, so the device is busy while the host reads what the one before has left.
            optimizer.deferred.refuse(but_last=True)

    @property
    def _raises(self) -> bool:
        return self.module.nonfinite == "raise"

    def _expect(self, key: Any) -> None:
        """Has the next step of this kind captured. This one compiles kernels, verifies the layout of samples, and makes
        tables and the optimizer's state, none of which can be done in a capture."""
        if len(self._graphs) >= self._max_graphs:
            self._graphs.popitem(last=False)
        self._graphs[key] = None

    def _replay(self, key: Any, parts: Sequence[Batch]) -> StepResult:
        bucket = self._graphs[key]
        if bucket is None:
            bucket = self._graphs[key] = _Bucket(self, parts[0])
        self._graphs.move_to_end(key)
        result = bucket.run(parts)
        self._stepped(bucket.flags)
        self.module.per_sample_gradient_norms = result.norms
        return result

    def _give_up(self, reason: str) -> None:
        if self._capture is True:
            raise CaptureError(reason)
        self.reason = reason
        self._graphs.clear()
        log.warning("steps run without CUDA graphs: %s", reason)


@dataclass
class _Sums:
    """Clipped sums of each parameter, and whether every sample's gradient was finite, (1,) bool."""

    gradients: list[torch.Tensor]
    finite: torch.Tensor

    def flags(self) -> torch.Tensor:
        """As of `ClippedSums.flags`: nothing can change a sum inside of a step."""
        return torch.cat([~self.finite, torch.zeros_like(self.finite)]).float()

    def added(self, other: "_Sums") -> "_Sums":
        torch._foreach_add_(self.gradients, other.gradients)
        return _Sums(self.gradients, self.finite & other.finite)


class _Settings:
    """What may change from one step to the next without a new graph, in memory that graphs read."""

    def __init__(self, module: GradSampleModuleFlash, optimizer: DPOptimizerFlash):
        self._optimizer = optimizer
        self._modules, self._buffers = list(module.modules()), list(module.buffers())
        self.device = optimizer.params[0].device
        self.max_grad_norm = torch.zeros(1, device=self.device)
        self.deviation = torch.zeros(1, device=self.device)
        self.one = torch.ones(1, dtype=torch.bool, device=self.device)
        self._rates = [torch.zeros((), device=self.device) for _ in optimizer.param_groups]
        self._known: dict[int, float] = {}
        self.noisy = False

    def update(self) -> None:
        """Copies what has changed since the last step."""
        clip, sigma = float(self._optimizer.max_grad_norm), float(self._optimizer.noise_multiplier)
        self.noisy = clip * sigma != 0
        values = [clip, clip * sigma, *(group["lr"] for group in self._optimizer.param_groups)]
        for i, (place, value) in enumerate(
            zip([self.max_grad_norm, self.deviation, *self._rates], values, strict=True)
        ):
            if isinstance(value, torch.Tensor):
                place.copy_(value, non_blocking=True)
            elif self._known.get(i) != value:
                self._known[i] = value
                place.fill_(value)

    def fixed(self) -> tuple[Any, ...]:
        """What a graph has fixed when it is captured: another value needs another graph."""
        groups = tuple(
            tuple(sorted((k, str(v)) for k, v in group.items() if k not in _READ_AT_REPLAY))
            for group in self._optimizer.param_groups
        )
        divisor = self._optimizer.loss_reduction, self._optimizer.expected_batch_size
        modes = tuple(module.training for module in self._modules)
        return groups, self._addresses(), divisor, self.noisy, modes

    def _addresses(self) -> tuple[int, ...]:
        """Of parameters, buffers and the optimizer's state: a checkpoint that is loaded may bring new tensors."""
        states = self._optimizer.state.values()
        state = [value for values in states for value in values.values() if isinstance(value, torch.Tensor)]
        return tuple(t.data_ptr() for t in (*self._optimizer.params, *self._buffers, *state))

    def capturable(self) -> "_Capturable":
        return _Capturable(self._optimizer.original_optimizer, self._rates)


class _Capturable:
    """Changes the optimizer's parameter groups during its step, so that a graph can hold the step.

    The learning rate becomes a tensor. SGD reads a tensor without a copy to the host only in its fused form. Adam and
    similar optimizers do so with `capturable`, which needs their step counters on the device.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, rates: list[torch.Tensor]):
        self._optimizer, self._rates = optimizer, rates

    def __enter__(self) -> None:
        self._given = [dict(group) for group in self._optimizer.param_groups]
        for group, rate in zip(self._optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate
            if "capturable" in group:
                group["capturable"] = True
                for p in group["params"]:
                    state = self._optimizer.state.get(p, {})
                    if isinstance(state.get("step"), torch.Tensor):
                        state["step"] = state["step"].to(p.device)
            elif isinstance(self._optimizer, torch.optim.SGD):
                group.update(fused=True, foreach=False)

    def __exit__(self, *_: object) -> None:
        for group, given in zip(self._optimizer.param_groups, self._given, strict=True):
            group.update({key: given[key] for key in ("lr", "fused", "foreach") if key in given})


class _Bucket:
    """The graphs of one shape of batch: the whole step, and for larger batches the first part, others, and the end."""

    def __init__(self, step: CapturedStep, example: Batch):
        self._step = step
        self._inputs = tuple(t.new_zeros(step.batch_size, *t.shape[1:]) for t in example)
        self._mask = torch.ones(step.batch_size, dtype=torch.bool, device=example[0].device)
        self._valid = step.batch_size
        self._graphs: dict[str, tuple[torch.cuda.CUDAGraph, Any]] = {}
        self._tables: list[torch.Tensor] = []
        self._own: list[torch.Tensor] | None = None
        self.finite = step._settings.one.clone()
        self.flags = torch.zeros(2, device=self.finite.device)

    def run(self, parts: Sequence[Batch]) -> StepResult:
        if len(parts) == 1:
            return self._replay("whole", parts[0])
        results = [self._replay("first" if i == 0 else "next", part) for i, part in enumerate(parts)]
        self._replayed("finish")
        return _joined(results, self._mask.device)

    def _replay(self, name: str, part: Batch) -> StepResult:
        n = len(part[0])
        for place, given in zip(self._inputs, part, strict=True):
            place[:n].copy_(given, non_blocking=True)
            for at in range(n, len(place), n):
                place[at : at + n].copy_(place[: min(n, len(place) - at)], non_blocking=True)
        if n != self._valid:
            self._mask[:n] = True
            self._mask[n:] = False
            self._valid = n
        losses, norms = self._replayed(name)
        return StepResult(losses[:n].clone(), norms[:n].clone())

    def _replayed(self, name: str) -> Any:
        if name not in self._graphs:
            self._graphs[name] = self._captured(getattr(self, f"_{name}"))
        graph, outputs = self._graphs[name]
        graph.replay()
        return outputs

    def _whole(self) -> Any:
        result, sums = self._step._clipped(self._inputs, self._mask)
        self._end(sums)
        return result.losses, result.norms

    def _first(self) -> Any:
        result, sums = self._step._clipped(self._inputs, self._mask)
        torch._foreach_copy_(self._gradients(), sums.gradients)
        self.finite.copy_(sums.finite)
        return result.losses, result.norms

    def _next(self) -> Any:
        result, sums = self._step._clipped(self._inputs, self._mask)
        torch._foreach_add_(self._gradients(), sums.gradients)
        self.finite.logical_and_(sums.finite)
        return result.losses, result.norms

    def _finish(self) -> None:
        self._end(_Sums(list(self._gradients()), self.finite))

    def _end(self, sums: _Sums) -> None:
        self.flags.copy_(sums.flags())
        self._step._finish(sums)
        # They lie in the memory of graphs, which the next replay overwrites.
        for p in self._step.optimizer.params:
            p.grad = None

    def _gradients(self) -> list[torch.Tensor]:
        """Sums of a batch of several parts, outside of the graphs' memory."""
        if self._own is None:
            self._own = [torch.zeros_like(p) for p in self._step.optimizer.params]
        return self._own

    def _captured(self, function: Callable[[], Any]) -> tuple[torch.cuda.CUDAGraph, Any]:
        from flash_clipping.kernels.table import captured_tables  # noqa: PLC0415, triton may be missing

        if function != self._whole:
            self._gradients()
        graph = self._new_graph()
        before = random.getstate(), torch.get_rng_state()
        with captured_tables() as tables, _Watch(self._step.module) as watch:
            try:
                with torch.cuda.graph(graph, pool=self._step.pool, capture_error_mode="relaxed"):
                    outputs = function()
            except Exception as error:
                self._end_capture_of_generators()
                cause = _first(error)
                words = str(cause).strip().partition("\n")[0]
                raise CaptureError(f"{watch.where}: {type(cause).__name__}: {words}") from error
        if random.getstate() != before[0] or not torch.equal(torch.get_rng_state(), before[1]):
            raise CaptureError("the step draws from a random generator of the host, which a graph would draw from once")
        self._tables += tables
        return graph, outputs

    def _new_graph(self) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        counter = self._step.optimizer.counter
        if counter is not None:
            graph.register_generator_state(counter.generator)
        return graph

    def _end_capture_of_generators(self) -> None:
        """After a failed capture its generators still refuse to draw. A capture that succeeds ends that."""
        torch.cuda.synchronize(self._mask.device)
        with torch.cuda.graph(self._new_graph()):
            self._mask.logical_not()


class _Watch:
    """Which layer runs, to name the one that cannot be captured."""

    def __init__(self, module: nn.Module):
        self._names = {child: name for name, child in module.named_modules()}
        self.where = "outside of the model"

    def __enter__(self) -> "_Watch":
        self._handle = nn.modules.module.register_module_forward_pre_hook(self._note)
        return self

    def __exit__(self, *_: object) -> None:
        self._handle.remove()

    def _note(self, module: nn.Module, _: Any) -> None:
        name = self._names.get(module)
        if name:
            self.where = f"in or after {name.removeprefix('_module.')} ({type(module).__name__})"


def _obstacle(module: GradSampleModuleFlash, optimizer: DPOptimizerFlash) -> str | None:
    """What is in the way of a capture, as far as can be said before one is tried."""
    devices = {p.device for p in module.parameters()}
    if len(devices) != 1 or next(iter(devices)).type != "cuda":
        return "the model is not on one CUDA device"
    if isinstance(module, GradSampleModuleFlashFSDP) or isinstance(optimizer, FSDPOptimizerFlash):
        return "the model is sharded: FSDP2 allocates and communicates from Python hooks"
    if optimizer.counter is None:
        return 'the noise is drawn by Opacus (noise="opacus", a noise_generator or secure mode)'
    if optimizer.counter.generator.device.type != "cuda":
        return "the noise generator is on the host"
    return None


def _first(error: BaseException) -> BaseException:
    """What went wrong first: the end of a capture that failed fails too."""
    while (earlier := error.__cause__ or error.__context__) is not None:
        error = earlier
    return error


def _filled(part: Batch, size: int) -> tuple[Batch, torch.Tensor]:
    """A physical batch: the part, then copies of its samples, and which of them count."""
    n = len(part[0])
    index = torch.arange(size, device=part[0].device)
    return tuple(t[index % n] for t in part) if n < size else part, index < n


def _joined(results: Sequence[StepResult], device: torch.device) -> StepResult:
    if not results:
        return StepResult(torch.zeros(0, device=device), torch.zeros(0, device=device))
    if len(results) == 1:
        return results[0]
    return StepResult(torch.cat([r.losses for r in results]), torch.cat([r.norms for r in results]))
