"""The plots of a comparison, through matplotlib's object interface: no pyplot, no global figure."""

from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from PIL import Image  # matplotlib itself depends on it

from service.contract import PLOTS, Arm, ArmRecord, Comparison, LossReduction, StepRecord, Subject
from worker.judge.measure import difference
from worker.judge.pair import RecordPair
from worker.judge.parameters import distances

# Without a salt the ids in an SVG are random; long noisy curves overflow Agg unless drawn in chunks.
matplotlib.rcParams["svg.hashsalt"] = "clipwatch"
matplotlib.rcParams["agg.path.chunksize"] = 10_000

Series = NDArray[np.float64]
Painter = Callable[[Axes, Comparison, ArmRecord, ArmRecord], None]

# Blue and orange look different with every common kind of colour blindness; dashes differ without any colour.
REFERENCE_COLOUR, CANDIDATE_COLOUR = COLOURS = "#1f6feb", "#e8590c"
FAINT_COLOURS = "#12b886", "#862e9c"
SOLID, DASHED = "-", "--"
# This many of the parameters that are furthest apart are drawn.
LINES = 5
LINE_COLOURS = ("#e8590c", "#1f6feb", "#12b886", "#862e9c", "#e0a800")
LOWEST_FLOOR, LARGEST_DRAWN = 1e-12, 1e100


def draw(comparison: Comparison, reference: ArmRecord, candidate: ArmRecord, folder: Path) -> list[Path]:
    """Write each plot as .png and .svg; return the paths.

    Any record can be drawn: that of a run that died, one with values that are not finite (they are crosses at the foot
    of the plot), one of a single step or of none. `folder` is made if it does not exist. Equal input gives equal bytes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name in PLOTS:
        figure = Figure(figsize=(7.2, 4.2), dpi=100, layout="constrained")
        axes = figure.add_subplot()
        axes.set_xlabel("optimizer step")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(alpha=0.25)
        PAINTERS[name](axes, comparison, reference, candidate)
        if axes.lines:
            figure.legend(loc="outside lower center", ncols=2, fontsize="small", frameon=False)
        else:
            axes.text(0.5, 0.5, "nothing was recorded", ha="center", transform=axes.transAxes)
        paths += _save(figure, folder / name)
    return paths


def _save(figure: Figure, stem: Path) -> list[Path]:
    """A PNG of 64 colours, a third of the size of a full one and no worse to look at, and an SVG."""
    png, svg = stem.with_suffix(".png"), stem.with_suffix(".svg")
    # Not `savefig`, which draws twice and finds the layout anew for each file.
    full = FigureCanvasAgg(figure)
    full.draw()  # type: ignore[no-untyped-call]
    figure.set_layout_engine("none")
    pixels = np.asarray(full.buffer_rgba())  # type: ignore[no-untyped-call]
    Image.fromarray(pixels).convert("RGB").quantize(64, dither=Image.Dither.NONE).save(png, optimize=True)
    FigureCanvasSVG(figure).print_svg(svg, metadata={"Date": None, "Creator": None})  # type: ignore[no-untyped-call]
    return [png, svg]


def _loss(axes: Axes, comparison: Comparison, reference: ArmRecord, candidate: ArmRecord) -> None:
    axes.set_title("Training loss")
    mean = comparison.workload.loss_reduction is LossReduction.MEAN
    axes.set_ylabel("cross-entropy, nats" + (" (batch mean)" if mean else " (batch sum)"))
    _curve_of_each_arm(axes, comparison, reference, candidate, "loss")


def _parameter_norms(axes: Axes, comparison: Comparison, reference: ArmRecord, candidate: ArmRecord) -> None:
    axes.set_title("Norm of all parameters after each step")
    axes.set_ylabel("L2 norm")
    _curve_of_each_arm(axes, comparison, reference, candidate, "parameter_norm")


def _gradient_norms(axes: Axes, comparison: Comparison, reference: ArmRecord, candidate: ArmRecord) -> None:
    axes.set_ylabel("L2 norm")
    if not (comparison.reference.mode.private or comparison.candidate.mode.private):
        axes.set_title("Norm of the summed gradient")
        _curve_of_each_arm(axes, comparison, reference, candidate, "clipped_grad_norm")
        return
    axes.set_title("Per-sample gradient norms before clipping")
    _curve_of_each_arm(axes, comparison, reference, candidate, "grad_norm_max", "largest, ")
    _curve_of_each_arm(axes, comparison, reference, candidate, "grad_norm_mean", "mean, ", FAINT_COLOURS)
    bound = comparison.workload.max_grad_norm
    axes.axhline(bound, color="0.35", linewidth=1, label=f"clipping bound C = {bound:g}")


def _loss_difference(axes: Axes, comparison: Comparison, reference: ArmRecord, candidate: ArmRecord) -> None:
    axes.set_title("Loss difference between the arms")
    axes.set_ylabel("|Δloss|, nats")
    actual = {record.step: record for record in candidate.steps}
    shared = [(record, actual[record.step]) for record in reference.steps if record.step in actual]
    steps = np.array([record.step for record, _ in shared], dtype=np.float64)
    gap = difference(
        _series([record for record, _ in shared], "loss"), _series([record for _, record in shared], "loss")
    )
    limit = comparison.limits.loss or 0.0
    floor = _zero_level(gap, limit)
    axes.set_yscale("log")
    if not steps.size:
        return
    drawn = np.maximum(gap, floor)
    axes.set_ylim(floor / 2, 4 * max(floor, limit, float(np.max(drawn, initial=0, where=_drawable(drawn)))))
    label = "|reference - candidate|" + (f", zeros drawn at {floor:.0e}" if np.any(gap == 0) else "")
    _curve(axes, steps, drawn, CANDIDATE_COLOUR, SOLID, label)
    _tolerance(axes, limit)


def _gradient_differences(axes: Axes, comparison: Comparison, reference: ArmRecord, candidate: ArmRecord) -> None:
    """The parameters that are furthest apart, a line each, and the limit."""
    axes.set_title("Difference of each parameter's clipped gradient")
    axes.set_ylabel("share of its norm")
    pair = RecordPair(comparison, Subject.COMPARISON, reference, candidate)
    steps, apart = distances(pair)
    worst = sorted(apart, key=lambda name: -float(np.max(apart[name], initial=0, where=_drawable(apart[name]))))
    limit = comparison.limits.gradient or 0.0
    everything = np.concatenate([*apart.values(), np.empty(0)])
    floor = _zero_level(everything, limit)
    axes.set_yscale("log")
    if not steps.size:
        return
    for name, colour in zip(worst[:LINES], LINE_COLOURS, strict=False):
        _curve(axes, steps, np.maximum(apart[name], floor), colour, SOLID, name)
    highest = float(np.max(everything, initial=0, where=_drawable(everything)))
    axes.set_ylim(floor / 2, 4 * max(floor, limit, highest))
    _tolerance(axes, limit)


def _tolerance(axes: Axes, limit: float) -> None:
    """A tolerance of 0 has no place on a log axis, only in the legend."""
    line = [limit, limit] if limit else []
    axes.plot([0, 1][: len(line)], line, color="0.2", linestyle=DASHED, transform=axes.get_yaxis_transform())
    axes.lines[-1].set_label(f"tolerance {limit:g}")


def _zero_level(gap: Series, limit: float) -> float:
    """Where zeros go on a log axis: the power of ten below everything that is drawn."""
    visible = [*gap[np.isfinite(gap) & (gap > 0)], *([limit] if limit else [])]
    return float(10 ** np.floor(np.log10(max(min(visible, default=1.0), LOWEST_FLOOR)) - 1))


def _curve_of_each_arm(
    axes: Axes,
    comparison: Comparison,
    reference: ArmRecord,
    candidate: ArmRecord,
    metric: str,
    prefix: str = "",
    colours: tuple[str, str] = COLOURS,
) -> None:
    """The candidate is drawn thin and broken over the thick, pale reference: both show where they coincide."""
    arms = (
        ("reference", comparison.reference, reference, colours[0], SOLID, 3.2, 0.55),
        ("candidate", comparison.candidate, candidate, colours[1], DASHED, 1.5, 1.0),
    )
    for role, arm, record, colour, style, width, opacity in arms:
        label = f"{prefix}{role}: {arm_label(arm, record)}"
        if record.steps:
            steps = np.array([step.step for step in record.steps], dtype=np.float64)
            _curve(axes, steps, _series(record.steps, metric), colour, style, label, width, opacity)


def _curve(
    axes: Axes,
    steps: Series,
    values: Series,
    colour: str,
    style: str,
    label: str,
    width: float = 1.5,
    opacity: float = 1.0,
) -> None:
    finite = _drawable(values)
    # A line needs two neighbours: a point that has none would not be seen without a marker.
    marker = "o" if np.count_nonzero(finite) < 3 else None
    axes.plot(
        steps,
        np.where(finite, values, np.nan),
        color=colour,
        linestyle=style,
        linewidth=width,
        alpha=opacity,
        marker=marker,
        markersize=2.2 * width,
        label=label,
    )
    if not finite.all():
        foot = np.full(np.count_nonzero(~finite), 0.03)
        axes.plot(
            steps[~finite],
            foot,
            "x",
            color=colour,
            transform=axes.get_xaxis_transform(),
            label=f"{label.split(':')[0]}: missing, NaN or infinite",
        )


def _drawable(values: Series) -> NDArray[np.bool_]:
    """Whether an axis can hold a value: matplotlib adds margins, which overflow near the largest float."""
    return np.isfinite(values) & (np.abs(values) < LARGEST_DRAWN)


def _series(steps: Sequence[StepRecord], metric: str) -> Series:
    """One metric over the steps, float64; NaN where it is missing."""
    values = (getattr(step, metric) for step in steps)
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


def arm_label(arm: Arm, record: ArmRecord) -> str:
    """Mode and world size, such as `flash_fsdp × 2`."""
    world_size = record.start.world_size if record.start else arm.world_size
    return arm.mode.value + (f" × {world_size}" if world_size else "")


PAINTERS: dict[str, Painter] = {
    "loss": _loss,
    "loss_difference": _loss_difference,
    "gradient_norms": _gradient_norms,
    "parameter_norms": _parameter_norms,
    "gradient_differences": _gradient_differences,
}
assert PAINTERS.keys() == PLOTS.keys(), "service.contract.gates and this table must list the same plots"
