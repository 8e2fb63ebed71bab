"""Exact noise predictions for CLD, and errors over the whole prior without sampling it."""

from collections.abc import Callable

import numpy as np
import torch

from ann2snn.diffusion.cld import CLD


class GaussianData:
    """Data x_0 ~ N(mean, var) for every coordinate; var = 0 is one data point."""

    def __init__(self, process: CLD, mean: float, var: float = 0.0) -> None:
        self.process, self.mean, self.var = process, mean, var

    def law(self, t: float) -> tuple[np.ndarray, np.ndarray]:
        """Mean [2] and covariance [2, 2] of p_t."""
        psi = self.process.transition(t, 0.0)
        return psi @ [self.mean, 0.0], self.process.covariance(t) + psi @ np.diag([self.var, 0.0]) @ psi.T

    def net(self, factor: str = "R") -> Callable:
        """ε = −K_tᵀ·score of p_t."""

        def predict(u: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            time = float(t[0])
            mean, covariance = self.law(time)
            matrix = self.process.factor(time, factor).T @ np.linalg.inv(covariance)
            centre = torch.as_tensor(mean, dtype=u.dtype).repeat_interleave(u.shape[1] // 2)
            return self.process.apply(matrix, u - centre.view(-1, *[1] * (u.dim() - 2)))

        return predict

    def flow_end(self, u: torch.Tensor, start: float = 1.0, end: float = 1e-3) -> torch.Tensor:
        """Where the probability flow takes u [N, 2]: (u − m)/R of the data's own law is constant (gDDIM, Prop. 4)."""
        own = own_process(self)
        move = own.factor(end) @ np.linalg.inv(own.factor(start))
        before, after = (torch.as_tensor(self.law(t)[0], dtype=u.dtype) for t in (start, end))
        return self.process.apply(move, u - before) + after


def own_process(data: GaussianData) -> CLD:
    """The process whose Σ_0 contains the data's variance."""

    class Own(CLD):
        def initial_variance(self) -> tuple[float, float]:
            position, velocity = super().initial_variance()
            return position + data.var, velocity

    return Own(data.process.config)


def prior_rmse(process: CLD, sampler: Callable, reference: Callable) -> float:
    """RMS over the prior of sampler(u) − reference(u), both affine in u [N, 2] → [N, 1]: three states say it all."""
    u = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    error = (sampler(u) - reference(u)).squeeze(1)
    slopes = error[1:] - error[0]
    return float(torch.sqrt(error[0] ** 2 + slopes[0] ** 2 + process.mass * slopes[1] ** 2))
