"""A sampler whose network keeps its levels from call to call makes the same images for fewer spikes."""

import pytest
import torch

import ann2snn
from ann2snn.config import SampleConfig
from ann2snn.convert import convert
from ann2snn.convert.gap import SpikeTotals
from ann2snn.errors import UserError
from ann2snn.generate.sampling import generate
from tests.helpers import random_ann

SAMPLERS = {
    "ddim": {"sampler": "ddim", "steps": 8},
    "ddim with noise": {"sampler": "ddim", "steps": 6, "eta": 1.0},
    "ddpm": {"sampler": "ddpm"},
    "two calls a step": {"sampler": "dpmpp_singlestep", "steps": 6, "order": 2},
    "stochastic solver": {"sampler": "dpmpp_sde", "steps": 6},
    "Heun": {"sampler": "heun", "steps": 7},
    "PNDM": {"sampler": "pndm", "steps": 4},
    "UniPC": {"sampler": "unipc", "steps": 6},
    "a corrector": {"sampler": "gddim", "steps": 6, "corrector": "pece"},
}


@pytest.fixture(scope="module")
def ann():
    return random_ann(bits=3, ch=4, ch_mult=(1,))


#: One of each kind: no noise, noise in every step, several calls a step.
QUICK = ("ddim", "stochastic solver", "two calls a step", "a corrector")


@pytest.mark.parametrize(
    "options",
    [pytest.param(how, id=name, marks=[] if name in QUICK else pytest.mark.slow) for name, how in SAMPLERS.items()],
)
def test_images_are_the_quantized_networks_for_fewer_spikes(ann, options):
    expected = ann2snn.sample(ann, 3, progress=False, **options)
    for how in ({}, {"schedule": "stream"}, {"schedule": "stream", "burst": 3}):
        snn, spikes = convert(ann, **how), {}
        for carry in (False, True):
            totals = SpikeTotals()
            with snn.monitored(totals):
                images = ann2snn.sample(snn, 3, progress=False, carry=carry, **options)
            spikes[carry] = totals.total()
            if carry or not how:  # a stream from rest that does not settle is not exact
                assert torch.equal(images, expected)
        assert spikes[True] < spikes[False]
    assert not snn.clock.keeps and all(state is None for _, neuron in snn.neurons() for state in neuron.states)


def test_every_group_of_images_begins_from_rest(ann):
    """So an image does not depend on those sampled before it, whatever is asked for together."""
    snn = convert(ann, schedule="stream")
    config = SampleConfig("ddim", 5, carry=True)
    both = generate(snn, config, [0, 40])  # of two groups
    assert torch.equal(both, torch.cat([generate(snn, config, [i]) for i in (0, 40)]))


def test_a_few_steps_a_call_follow_and_are_counted(ann):
    """Without settling an error of one call is corrected in the next."""
    expected = ann2snn.sample(ann, 2, steps=10, progress=False).double()
    snn = convert(ann, schedule="stream")
    errors = []
    for steps in (1, 8, "auto"):
        images = ann2snn.sample(snn, 2, steps=10, carry=True, carry_steps=steps, progress=False)
        errors.append(float((images - expected).abs().mean()))
    assert errors[0] > errors[2] == 0 and errors[0] >= errors[1]


@pytest.mark.parametrize(
    ("how", "options", "words"),
    [
        ({"signed": False}, {}, "take spikes back"),
        ({"schedule": "stream", "stream_norm": "per_step", "if_neuron": "reference"}, {}, "do not forget"),
        ({}, {"carry_steps": 0}, "--carry_steps=0"),
        ({}, {"carry_steps": "soon"}, "--carry_steps=soon"),
        (None, {}, "only a converted network"),
    ],
)
def test_what_cannot_be_carried_is_refused_before_the_first_call(ann, how, options, words):
    net = ann if how is None else convert(ann, **how)
    net_calls = []
    handle = net.register_forward_pre_hook(lambda *_: net_calls.append(1))
    with pytest.raises(UserError, match=words):
        ann2snn.sample(net, 2, steps=2, carry=True, progress=False, **options)
    handle.remove()
    assert not net_calls
    with pytest.raises(UserError, match="only with --carry"):
        SampleConfig("ddim", 2, carry_steps=3)
