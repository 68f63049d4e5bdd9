"""Faults of the batch: which samples and tokens count, on which rank, in which order."""

from worker.selftest import edit, fault


@fault("clipwatch loss", suites=("clipping",))
def ignored_tokens_counted():
    """The mean over a sample's tokens is divided by all tokens, also by those that are ignored."""
    edit(
        "worker.training.model:PerSampleCrossEntropy.forward",
        ("(targets != self.IGNORED).sum(dim=1).clamp(min=1)", "targets.shape[1]"),
    )


@fault("clipwatch batches (modes × several ranks)")
def uneven_samples_dropped():
    """Ranks get shares of one size, and the samples that are left over are dropped."""
    edit("worker.training.data:parts_of", ("part[rank]", "part[rank][: min(map(len, part))]"))


@fault("clipwatch batches (modes × several ranks)")
def uneven_samples_counted_twice():
    """Ranks get shares of one size, padded with samples that another rank has."""
    edit(
        "worker.training.data:parts_of",
        ("part[rank]", "range(part[rank].stop - max(map(len, part)), part[rank].stop)"),
    )


@fault("clipwatch batches (modes × several ranks)")
def samples_in_another_order():
    """Shares are dealt to the ranks in reverse order, so that losses and norms are of other samples."""
    edit("worker.training.data:parts_of", ("part[rank]", "part[world_size - 1 - rank]"))


@fault("clipwatch batches (every mode)")
def data_of_another_seed():
    """The data set is drawn with another seed."""
    edit(
        "worker.training.data:SyntheticData.__init__", ("manual_seed(workload.seed)", "manual_seed(workload.seed + 1)")
    )


@fault("opacus wrapper (hooks)", suites=("parity",))
def mean_of_another_batch():
    """The mean over the batch is undone with one sample too many."""
    edit(
        "opacus.grad_sample.grad_sample_module:GradSampleHooks.rearrange_grad_samples",
        ("backprops = backprops * n", "backprops = backprops * (n + 1)"),
    )
