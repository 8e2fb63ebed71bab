"""Samplers and schedules against an independent implementation, the schedulers of `diffusers`."""

import math

import pytest
import torch

from ann2snn.diffusion import sample_ddim
from ann2snn.diffusion.samplers import (
    SAMPLERS,
    dpm_solver,
    dpmpp,
    sample_ddpm_strided,
    sample_dpmpp,
    sample_dpmpp_sde,
    sample_dpmpp_singlestep,
    uniform_times,
)
from ann2snn.diffusion.samplers.solver import node
from tests.diffusion.vp_exact import Draws, flow_gain, gaussian_denoiser, no_noise, normal, process

schedulers = pytest.importorskip("diffusers.schedulers", reason="pip install -r requirements-dev.txt")

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers.*"),
    pytest.mark.filterwarnings("ignore::FutureWarning:diffusers.*"),
]
CLOSE = {"rtol": 1e-8, "atol": 1e-8}
FLOAT32 = {"rtol": 5e-6, "atol": 5e-6}  # their multistep solver rounds the state to float32 in every step


def net(x, t):
    """Nonlinear in x, and different at every time."""
    return torch.tanh(x + 1e-3 * t.to(x).view(-1, 1, 1, 1)) + 0.1


def scheduler(kind: str, vp, **options):
    """A scheduler of `diffusers` with the process's own ᾱ, in float64 (they keep float32)."""
    made = getattr(schedulers, kind)(num_train_timesteps=vp.diffusion_steps, **options)
    made.betas, made.alphas, made.alphas_cumprod = vp.betas, 1 - vp.betas, vp.alphas_bar
    made.alpha_t, made.sigma_t = torch.sqrt(vp.alphas_bar), torch.sqrt(1 - vp.alphas_bar)
    made.lambda_t = torch.log(made.alpha_t) - torch.log(made.sigma_t)
    return made


def run(made, model, x, **options):
    for t in made.timesteps:
        x = made.step(model(x, t.expand(len(x))), t, x, **options).prev_sample
    return x.clamp(-1, 1)


@pytest.mark.parametrize(
    ("own", "theirs"),
    [("linear", "linear"), ("quad", "scaled_linear"), ("cosine", "squaredcos_cap_v2")],
)
def test_betas(own, theirs):
    vp = process(schedule=own)
    expected = schedulers.DDPMScheduler(beta_start=1e-4, beta_end=0.02, beta_schedule=theirs).betas
    torch.testing.assert_close(vp.betas.float(), expected, rtol=1e-4, atol=1e-7)  # theirs are float32


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize(("var_type", "name"), [("fixedlarge", "fixed_large"), ("fixedsmall", "fixed_small")])
@pytest.mark.parametrize(("mean_type", "kind"), [("epsilon", "epsilon"), ("xstart", "sample"), ("v", "v_prediction")])
def test_strided_ddpm(mean_type, kind, var_type, name, clip):
    vp, x_T = process(100, mean_type=mean_type, var_type=var_type), normal(2, 1, 4, 4)
    made = scheduler("DDPMScheduler", vp, variance_type=name, clip_sample=clip, prediction_type=kind)
    made.set_timesteps(timesteps=uniform_times(100, 12))
    expected = run(made, net, x_T, generator=torch.Generator().manual_seed(5))
    got = sample_ddpm_strided(net, vp, x_T, noise=Draws(x_T.shape, seed=5), steps=12, clip=clip)
    torch.testing.assert_close(got, expected, **CLOSE)


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize(("mean_type", "kind"), [("epsilon", "epsilon"), ("xstart", "sample"), ("v", "v_prediction")])
def test_ddim(mean_type, kind, eta, clip):
    vp, x_T = process(100, mean_type=mean_type), normal(2, 1, 4, 4)
    made = scheduler("DDIMScheduler", vp, clip_sample=clip, prediction_type=kind, timestep_spacing="leading")
    made.set_timesteps(10)
    generator = torch.Generator().manual_seed(5)
    expected = run(made, net, x_T, eta=eta, use_clipped_model_output=True, generator=generator)
    got = sample_ddim(
        net, vp, x_T, noise=Draws(x_T.shape, seed=5), steps=10, eta=eta, skip="ddpm_torch_linear", clip=clip
    )
    torch.testing.assert_close(got, expected, **CLOSE)


def multistep(vp, order: int, times: list[int], algorithm: str = "dpmsolver++", kind: str = "epsilon"):
    made = scheduler(
        "DPMSolverMultistepScheduler",
        vp,
        solver_order=order,
        algorithm_type=algorithm,
        prediction_type=kind,
        lower_order_final=False,
        final_sigmas_type="zero",
        solver_type="midpoint",
    )
    made.set_timesteps(timesteps=times)
    alphas_bar = vp.alphas_bar[times]
    # Their grid is float32; this is the same in float64.
    made.sigmas = torch.cat([torch.sqrt((1 - alphas_bar) / alphas_bar), torch.zeros(1, dtype=torch.float64)])
    return made


def halved_bend(monkeypatch):
    """`diffusers`, like the authors' code, takes half the second derivative in 3M."""
    exact = dpmpp._derivatives

    def halved(images, nodes, h):
        slope, bend = exact(images, nodes, h)
        return slope, bend if bend is None else bend / 2

    monkeypatch.setattr(dpmpp, "_derivatives", halved)


@pytest.mark.parametrize(("mean_type", "kind"), [("epsilon", "epsilon"), ("v", "v_prediction")])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_multistep_solvers(order, mean_type, kind, monkeypatch):
    vp, x_T, steps = process(101, mean_type=mean_type), normal(2, 1, 4, 4), 11
    made = multistep(vp, order, uniform_times(101, steps), kind=kind)
    halved_bend(monkeypatch)
    got = sample_dpmpp(net, vp, x_T, noise=no_noise, steps=steps, order=order, skip="uniform", clip=False)
    torch.testing.assert_close(got.float(), run(made, net, x_T).float(), **FLOAT32)


@pytest.mark.parametrize("order", [1, 2])
def test_multistep_solvers_of_the_sde(order):
    vp, x_T, steps = process(101), normal(2, 1, 4, 4), 11
    made = multistep(vp, order, uniform_times(101, steps), "sde-dpmsolver++")
    x, noise = x_T, Draws(x_T.shape, seed=5)
    for t in made.timesteps:
        x = made.step(net(x, t.expand(len(x))), t, x, variance_noise=noise()).prev_sample
    noise = Draws(x_T.shape, seed=5)
    got = sample_dpmpp_sde(net, vp, x_T, noise=noise, steps=steps, order=order, skip="uniform", clip=False)
    torch.testing.assert_close(got.float(), x.clamp(-1, 1).float(), **FLOAT32)


def test_half_the_second_derivative_leaves_2m_s_order(monkeypatch):
    # The one place where the published code is not followed; this is what that buys.
    vp = process()
    errors = {}
    for name in ("exact", "halved"):
        if name == "halved":
            halved_bend(monkeypatch)
        for n in (96, 192):
            x = torch.full((1, 1, 1, 1), 1e-3, dtype=torch.float64)
            out = sample_dpmpp(gaussian_denoiser(vp, 0.3), vp, x, steps=1 + n, order=3, skip="logsnr", clip=False)
            errors[name, n] = abs(float(out) * 1e3 / flow_gain(vp, 0.3) - 1)
    assert math.log2(errors["halved", 96] / errors["halved", 192]) == pytest.approx(2, abs=0.2)
    assert math.log2(errors["exact", 96] / errors["exact", 192]) > 3
    assert errors["exact", 192] < errors["halved", 192] / 50


@pytest.mark.parametrize(("mean_type", "kind"), [("epsilon", "epsilon"), ("v", "v_prediction")])
@pytest.mark.parametrize(("order", "steps"), [(1, 5), (2, 6), (2, 7), (3, 7), (3, 8), (3, 9)])
def test_singlestep_solvers_of_the_data_prediction(order, steps, mean_type, kind):
    """Whole chains on our times. Their 3S takes its middle call where the paper's does under `heun` alone."""
    vp, x_T = process(mean_type=mean_type), normal(2, 1, 4, 4)
    made = scheduler(
        "DPMSolverSinglestepScheduler", vp, solver_order=order, prediction_type=kind, lower_order_final=True
    )
    made.set_timesteps(steps)
    nodes = [node(vp, time) for time in SAMPLERS["dpmpp_singlestep"].times(vp, steps=steps, order=order)]
    made.timesteps = torch.tensor([at.time for at in nodes], dtype=torch.float64)
    made.sigmas = torch.tensor([*(at.sigma / at.alpha for at in nodes), 0], dtype=torch.float64)
    # They split 3·k + 2 steps in another way where the last of them is that of the image.
    full, rest = divmod(steps - 1, order)
    made.order_list = [*range(1, order + 1)] * full + [*range(1, rest + 1)] + [1]
    x = x_T
    for i, t in enumerate(made.timesteps):
        middle = order == 3 and made.order_list[i : i + 2] == [2, 3]
        made.register_to_config(solver_type="heun" if middle else "midpoint")
        x = made.step(net(x, t.expand(len(x))), t, x).prev_sample
    got = sample_dpmpp_singlestep(net, vp, x_T, noise=no_noise, steps=steps, order=order, clip=False)
    torch.testing.assert_close(got, x.clamp(-1, 1), **CLOSE)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_one_singlestep_step(order):
    """Their update formulas on our nodes; their own grids put the inner nodes at whole times."""
    vp, x = process(), normal(2, 1, 3, 3)
    made = scheduler(
        "DPMSolverSinglestepScheduler",
        vp,
        solver_order=order,
        algorithm_type="dpmsolver",
        final_sigmas_type="sigma_min",
    )
    start, end = node(vp, 700.0), node(vp, 500.0)
    stops = [*dpm_solver.stops(vp, start, end, order), end]
    made.sigmas = torch.tensor([stop.sigma / stop.alpha for stop in stops], dtype=torch.float64)
    made._step_index = order - 1
    seen = []

    def predict(state, at):
        seen.append(net(state, torch.full((len(state),), at.time, dtype=torch.float64)))
        return seen[-1]

    got = dpm_solver.STEPS[order](predict, x, *stops)
    if order == 1:
        expected = made.dpm_solver_first_order_update(seen[-1], sample=x)
    elif order == 2:
        expected = made.singlestep_dpm_solver_second_order_update(seen, sample=x)
    else:
        expected = made.singlestep_dpm_solver_third_order_update(seen, sample=x)
    torch.testing.assert_close(got, expected, **CLOSE)
