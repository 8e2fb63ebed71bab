"""The network calls that settings announce, beside those that every sampler makes."""

import pytest
import torch

from ann2snn.config import SAMPLERS, DiffusionConfig, SampleConfig
from ann2snn.diffusion.process import run_sampler
from tests.diffusion.vp_exact import normal

VP = DiffusionConfig(diffusion_steps=23)
WHOLE_SKIPS_OF_DDIM = SAMPLERS["ddim"].skips
CASES = [
    *(("vp", name, {"steps": k, "skip": skip}) for name in SAMPLERS for skip in SAMPLERS[name].skips for k in (4, 9)),
    # What a flagfile says of the spacing and these have not.
    *(("vp", name, {"skip": skip}) for name in SAMPLERS if not SAMPLERS[name].skips for skip in WHOLE_SKIPS_OF_DDIM),
    *(("vp", name, {"order": order}) for name in SAMPLERS for order in range(1, SAMPLERS[name].max_order + 1)),
    *(("vp", name, {"denoise": False}) for name in SAMPLERS if "denoise" in SAMPLERS[name].options),
    *(("vp", "ddim", {"denoise": False, "skip": skip}) for skip in WHOLE_SKIPS_OF_DDIM),
    *(
        (process, name, {"denoise": denoise})
        for process in ("cld", "blur")
        for name in SAMPLERS
        if SAMPLERS[name].linear
        for denoise in (True, False)
    ),
    *(
        ("vp", "gddim", {"corrector": corrector, "denoise": denoise, "steps": 8 if denoise else 9})
        for corrector in ("pec", "pece")
        for denoise in (True, False)
    ),
]


@pytest.mark.parametrize(("process", "name", "options"), CASES, ids=str)
def test_settings_count_the_calls_that_are_made(process, name, options):
    config = VP if process == "vp" else DiffusionConfig(process=process)
    sample, calls = SampleConfig(name, **{"steps": 9} | options), 0
    channels = 2 if process == "cld" else 1

    def net(x, t):
        nonlocal calls
        calls += 1
        return torch.zeros_like(x)

    statistics = torch.ones(23, dtype=torch.float64)
    run_sampler(net, config, 4, sample, lambda: normal(2, channels, 4, 4), statistics, spike_steps=2)
    assert sample.calls(config) == calls
    if not SAMPLERS[name].skips and name != "ddpm":
        assert calls == sample.steps
