"""What batch norms keep while a network is trained: running statistics, which no optimizer moves."""

from __future__ import annotations

from torch import Tensor, nn

from ..neurons import StepBatchNorm


def running(net: nn.Module) -> list[Tensor]:
    """Batch norm's running statistics."""
    norms = [module for module in net.modules() if isinstance(module, StepBatchNorm)]
    kept = (statistic for norm in norms for statistic in (norm.running_mean, norm.running_var))
    return [statistic for statistic in kept if statistic is not None]


def counted(net: nn.Module) -> list[Tensor]:
    """All that a forward pass changes: batch norm's running statistics and its count of batches."""
    norms = [module for module in net.modules() if isinstance(module, StepBatchNorm)]
    counts = (norm.num_batches_tracked for norm in norms)
    return [*running(net), *(count for count in counts if count is not None)]


def begin_statistics(net: nn.Module, call: tuple) -> None:
    """Let batch norm's running statistics be those of one call, so that what comes after them is calibrated on it."""
    norms = [module for module in net.modules() if isinstance(module, StepBatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    if norms:
        net(*call)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
