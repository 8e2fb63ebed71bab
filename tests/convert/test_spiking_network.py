"""How a converted network behaves as an object: storage, state, refusals."""

import pytest
import torch

from ann2snn.config import SpikingConfig
from ann2snn.convert import SpikingNetwork, convert
from ann2snn.errors import UserError
from ann2snn.nets import UNet
from quant import QuantReLU
from tests.helpers import Trains, assert_close, assert_equal, random_ann, random_batch

CONFIGS = {
    "layer_sync": SpikingConfig(),
    "stream": SpikingConfig("stream"),
    "settled": SpikingConfig("stream", settle_steps="auto"),
    "reference": SpikingConfig("stream", stream_norm="per_step", if_neuron="reference"),
}
configs = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)


def call(snn: SpikingNetwork, batch: tuple) -> torch.Tensor:
    with torch.no_grad():
        return snn(*batch)


def has_state(snn: SpikingNetwork) -> bool:
    return any(state is not None for _, neuron in snn.neurons() for state in neuron.states)


def test_nothing_is_shared_with_the_ann():
    ann = random_ann()
    snn = convert(ann)

    def pointers(net) -> set:
        return {value.data_ptr() for value in net.state_dict().values()}

    assert not pointers(ann) & pointers(snn)
    before = {name: value.clone() for name, value in ann.state_dict().items()}
    with torch.no_grad():
        for parameter in snn.parameters():
            parameter.add_(1)
    for name, value in ann.state_dict().items():
        assert_equal(value, before[name])


def test_weights_names_precision_and_mode_are_the_anns():
    ann = random_ann().train()
    snn = convert(ann)
    assert not snn.training and ann.training
    assert snn.net.state_dict().keys() == ann.state_dict().keys()
    for name, value in snn.net.state_dict().items():
        assert_equal(value, ann.state_dict()[name])
    assert (snn.in_channels, snn.image_size, snn.config, snn.diffusion) == (3, (4, 4), ann.config, ann.diffusion)
    assert convert(random_ann().float()).net.head.weight.dtype == torch.float32


@configs
def test_state_never_enters_the_state_dict_and_is_gone_after_a_call(config):
    snn = convert(random_ann(), config)
    names = set(snn.state_dict())
    seen = []
    snn.net.tail.register_forward_hook(lambda *args: seen.append((set(snn.state_dict()), has_state(snn))))
    call(snn, random_batch(snn))
    assert seen and all(during == names for during, _ in seen)
    assert all(state == (config.schedule == "stream") for _, state in seen)
    assert not has_state(snn) and set(snn.state_dict()) == names


@configs
def test_every_call_starts_afresh_whatever_came_before(config):
    snn = convert(random_ann(), config)
    batch, other = random_batch(snn, 2), random_batch(snn, 3, seed=1)
    first = call(snn, batch)
    assert call(snn, other).shape[0] == 3
    assert_equal(call(snn, batch), first)


@configs
def test_an_image_does_not_depend_on_its_batch(config):
    snn = convert(random_ann(), config)
    x, t = random_batch(snn, 3)
    alone = torch.cat([call(snn, (x[i : i + 1], t[i : i + 1])) for i in range(3)])
    assert_close(call(snn, (x, t)), alone, 1e-12)


def test_a_failed_call_leaves_nothing_behind():
    snn = convert(random_ann(), schedule="stream")
    batch = random_batch(snn)
    first = call(snn, batch)
    with pytest.raises(RuntimeError):
        call(snn, (torch.zeros(2, 3, 5, 5, dtype=torch.float64), batch[1]))  # an odd size cannot come back up
    assert not has_state(snn)
    assert_equal(call(snn, batch), first)


def test_another_batch_in_the_middle_of_a_window_raises():
    snn = convert(random_ann(), schedule="stream")
    (x, t), (y, s) = random_batch(snn, 2), random_batch(snn, 3)
    with torch.no_grad():
        snn.reset()
        snn._chunk((x, t), {}, 1)
        with pytest.raises(ValueError, match="reset the network"):
            snn._chunk((y, s), {}, 1)


def test_running_as_and_monitored_are_undone_on_exit_and_on_error():
    snn = convert(random_ann())
    stream = SpikingConfig("stream")
    with pytest.raises(KeyError), snn.monitored(Trains(snn)), snn.running_as(stream):
        assert snn.spiking == stream and snn.clock.monitor is not None
        raise KeyError
    assert snn.spiking == SpikingConfig() and snn.clock.monitor is None


def test_full_precision_is_refused():
    with pytest.raises(UserError, match="--bit=2 to 8"):
        convert(random_ann(bits=32))


def test_power_of_two_activations_are_refused_by_name():
    ann = random_ann(bits=3)
    ann.middleblocks[1].block2[1] = QuantReLU(3, power=True)
    with pytest.raises(UserError, match=r"middleblocks\.1\.block2\.1"):
        convert(ann)


def test_other_modules_are_refused():
    with pytest.raises(UserError, match="Linear"):
        convert(torch.nn.Linear(2, 2))
    with pytest.raises(UserError, match="converted already"):
        convert(convert(random_ann()))


@pytest.mark.parametrize(
    "options",
    [
        {"schedule": "sync"},
        {"settle_steps": 2},
        {"schedule": "stream", "settle_steps": -1},
        {"schedule": "stream", "settle_steps": "soon"},
        {"schedule": "stream", "settle_steps": 2, "stream_norm": "per_step"},
        {"if_neuron": "leaky"},
        {"stream_norm": "batch"},
    ],
)
def test_impossible_settings_are_refused_in_one_line(options):
    with pytest.raises(UserError) as refusal:
        convert(random_ann(), **options)
    assert "\n" not in str(refusal.value)


def test_an_unknown_option_is_a_programming_error():
    with pytest.raises(TypeError):
        convert(random_ann(), shedule="stream")


def test_conversion_keeps_the_process_it_was_trained_for():
    ann = random_ann()
    own = UNet(ann.config, diffusion=ann.diffusion.__class__(diffusion_steps=20, mean_type="xstart"))
    assert convert(own.double()).diffusion.mean_type == "xstart"


def test_latency_is_said_for_both_schedules():
    snn = convert(random_ann(bits=3))
    assert snn.time_steps == f"{snn.depth} × 7"
    with snn.running_as(SpikingConfig("stream", settle_steps=2)):
        assert snn.time_steps.startswith("7 + 2 (+ ") and str(snn.depth) in snn.time_steps
