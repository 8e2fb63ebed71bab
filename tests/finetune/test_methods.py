"""Both methods, what they may learn, and what a step costs."""

import itertools

import pytest
import torch

from ann2snn import UserError
from ann2snn.checkpoints import checkpoint
from ann2snn.config import SampleConfig, SpikingConfig
from ann2snn.convert import convert
from ann2snn.convert.gap import record_outputs
from ann2snn.finetune import (
    NETWORK,
    BlockTuning,
    Networks,
    calibrate,
    capture_inputs,
    expand_neurons,
    make_subject,
    prediction_gap,
    run_block,
    subject_gap,
    tied_proxy,
    tunable_blocks,
    tune_block,
)
from ann2snn.finetune.inputs import sampler_batches
from ann2snn.finetune.subject import LEARNABLE
from ann2snn.generate.sampling import Hooks, generate
from tests.helpers import assert_close, assert_equal, random_ann, random_batch

STREAM = SpikingConfig("stream")


def trio(learn=("weights",), granularity="channel", spiking=STREAM, **options):
    ann = random_ann(**options)
    snn = convert(ann, spiking)
    expand_neurons(snn, learn, granularity)
    return ann, snn, tied_proxy(ann, snn)


def batches(net, n: int = 4):
    return (random_batch(net, n, seed) for seed in itertools.count(100))


@pytest.mark.parametrize(
    ("method", "signed"),
    [
        ("proxy", True),
        ("bptt", False),
        pytest.param("proxy", False, marks=pytest.mark.slow),
        pytest.param("bptt", True, marks=pytest.mark.slow),
    ],
)
def test_both_methods_lower_the_gap_of_every_block_they_touch(method, signed):
    spiking = SpikingConfig("stream", signed=signed, stream_norm="per_step")
    learn = LEARNABLE if method == "bptt" else ("weights",)
    ann, snn, proxy = trio(learn, spiking=spiking, bits=3)
    held_back = [random_batch(ann, 8, seed) for seed in range(2)]
    tuning = BlockTuning(20, 3e-3, method=method, learn=learn, decay=True)
    before, touched = prediction_gap(ann, snn, held_back), 0
    for name in tunable_blocks(snn):
        subject = make_subject(name, Networks(ann, snn, proxy))
        start = {key: value.clone() for key, value in subject.modules[0].state_dict().items()}
        report = tune_block(name, Networks(ann, snn, proxy), batches(ann), held_back, tuning)
        changed = any(not torch.equal(value, start[key]) for key, value in subject.modules[0].state_dict().items())
        gap = subject_gap(subject, [subject.example(batch) for batch in held_back])
        assert gap == pytest.approx(report.gap_after, rel=1e-9)
        assert (gap < report.gap_before) == changed, name
        touched += changed
    assert touched > len(tunable_blocks(snn)) / 2
    assert prediction_gap(ann, snn, held_back) < before


@pytest.mark.parametrize("method", ["proxy", pytest.param("bptt", marks=pytest.mark.slow)])
def test_the_last_pass_lowers_the_prediction_gap_and_leaves_exact_blocks_alone(method):
    ann, snn, proxy = trio(spiking=SpikingConfig("stream", stream_norm="per_step"), bits=3)
    held_back = [random_batch(ann, 8, 0)]
    exact = [snn.net.head.weight.clone(), snn.net.time_embedding.timembedding[1].weight.clone()]
    tuning = BlockTuning(40, 1e-3, method=method, patience=10, decay=True)
    report = tune_block(NETWORK, Networks(ann, snn, proxy), batches(ann), held_back, tuning)
    assert report.gap_after < 0.97 * report.gap_before
    assert prediction_gap(ann, snn, held_back) == pytest.approx(report.gap_after, rel=1e-9)
    assert_equal(snn.net.head.weight, exact[0])
    assert_equal(snn.net.time_embedding.timembedding[1].weight, exact[1])


@pytest.mark.parametrize("granularity", ["layer", "channel"])
@pytest.mark.parametrize("kind", ["thresholds", "charges"])
def test_only_what_is_to_be_learned_changes(kind, granularity):
    ann, snn, proxy = trio((kind,), granularity, SpikingConfig("stream", stream_norm="per_step", signed=False), bits=3)
    before = {name: value.clone() for name, value in snn.net.state_dict().items()}
    tuning = BlockTuning(20, 1.0, method="bptt", learn=(kind,), neuron_lr=1e-2)
    report = tune_block("middleblocks.0", Networks(ann, snn, proxy), batches(ann), [random_batch(ann, 8)], tuning)
    assert report.gap_after < report.gap_before
    changed = {name for name, value in snn.net.state_dict().items() if not torch.equal(value, before[name])}
    ending = {"thresholds": ".act_alpha", "charges": ".charge"}[kind]
    assert changed and all(name.startswith("middleblocks.0.") and name.endswith(ending) for name in changed)
    shape = snn.net.middleblocks[0].block1[1].act_alpha.shape if kind == "thresholds" else None
    assert kind != "thresholds" or shape == ((16, 1, 1) if granularity == "channel" else ())


def test_expanding_changes_nothing_and_is_saved_with_the_network(tmp_path):
    ann = random_ann()
    snn = convert(ann, STREAM)
    x, t = random_batch(ann)
    with torch.no_grad():
        before = snn(x, t)
        expand_neurons(snn, LEARNABLE, "channel")
        assert_equal(snn(x, t), before)
        with snn.running_as(SpikingConfig()):
            assert_close(snn(x, t), ann(x, t), 1e-12)
        generator = torch.Generator().manual_seed(0)
        for _, neuron in snn.neurons():
            neuron.charge += 0.1 * torch.randn(neuron.charge.shape, generator=generator)
        tuned = snn(x, t)
    checkpoint.save(tmp_path / "snn.pt", checkpoint.payload_of(snn.float(), stage="finetuned", source="", step=0))
    loaded = checkpoint.load(tmp_path / "snn.pt").net.double()
    with torch.no_grad():
        assert not torch.equal(tuned, before)
        assert_equal(loaded(x, t), snn.double()(x, t))


def test_charges_of_a_wrong_shape_are_refused(tmp_path):
    snn = convert(random_ann(), STREAM)
    expand_neurons(snn, ("charges",), "channel")
    payload = checkpoint.payload_of(snn, stage="finetuned", source="", step=0)
    name = next(n for n in payload["ema_model"] if n.endswith("block1.1.charge"))
    payload["ema_model"][name] = torch.zeros(3, 1, 1, dtype=torch.float64)
    checkpoint.save(tmp_path / "snn.pt", payload)
    with pytest.raises(UserError, match="channels"):
        net = checkpoint.load(tmp_path / "snn.pt").net.double()
        net(*random_batch(net))


@pytest.mark.parametrize(
    ("norm", "settle"),
    [("cumulative", 0), ("cumulative", 2), ("cumulative", "auto"), ("per_step", 0)],
)
def test_a_block_replayed_on_recorded_inputs_answers_as_in_the_network(norm, settle):
    ann = random_ann()
    snn = convert(ann, SpikingConfig("stream", stream_norm=norm, settle_steps=settle))
    x, t = random_batch(snn)
    with torch.no_grad(), record_outputs(snn) as outputs:
        snn(x, t)
    for name, _ in snn.blocks():
        with torch.no_grad():
            output = run_block(snn, name, capture_inputs(snn, name, x, t))
        assert_close(output, outputs[name][0], 1e-12)


def calls_in_one_step(cache: int, steps: int) -> dict[str, int]:
    """How often each block of the student ran in `steps` steps of tuning middleblocks.0, checks left out."""
    ann, snn, proxy = trio()
    calls = dict.fromkeys([name for name, _ in snn.blocks()], 0)
    subject = make_subject("middleblocks.0", Networks(ann, snn, proxy))
    held_back = [random_batch(ann)]

    def count(name):
        return lambda *_: calls.__setitem__(name, calls[name] + 1)

    handles = [module.register_forward_hook(count(name)) for name, module in snn.blocks()]
    subject.example(held_back[0])
    subject_gap(subject, [subject.example(held_back[0])])
    overhead = dict(calls)
    before = dict(calls)
    tuning = BlockTuning(steps, 1e-4, checks=1, method="bptt", cache=cache)
    tune_block("middleblocks.0", Networks(ann, snn, proxy), batches(ann), held_back, tuning)
    for handle in handles:
        handle.remove()
    # Judging: one recording and two checks. `overhead` held two recordings and one check.
    judging = {name: 1 if n == 2 else 2 for name, n in overhead.items() if n}
    return {name: calls[name] - before[name] - judging.get(name, 0) for name in calls}


def test_a_step_costs_one_pass_up_to_the_block_and_the_block_itself():
    calls = calls_in_one_step(cache=0, steps=5)
    names = list(calls)
    at = names.index("middleblocks.0")
    assert all(calls[name] == 5 for name in names[:at]), calls
    assert calls["middleblocks.0"] == 5 and all(calls[name] == 0 for name in names[at + 1 :])
    cached = calls_in_one_step(cache=2, steps=5)
    assert all(cached[name] == 2 for name in names[:at]) and cached["middleblocks.0"] == 5


def test_calibration_never_widens_the_gap_it_looks_at():
    for signed in (True, False):
        ann, snn, proxy = trio(spiking=SpikingConfig("stream", signed=signed))
        subject = make_subject("upblocks.1", Networks(ann, snn, proxy))
        examples = [subject.example(random_batch(ann, 8, 5))]
        before = subject_gap(subject, examples)
        calibrate(subject, examples)
        assert subject_gap(subject, examples) < before


def test_calibration_that_does_not_help_on_held_back_images_is_undone():
    ann, snn, proxy = trio(spiking=SpikingConfig("stream", settle_steps="auto"))
    x, t = random_batch(ann)
    report = tune_block("tail", Networks(ann, snn, proxy), batches(ann), [(x, t)], BlockTuning(0, 1e-3, calibrate=True))
    assert report.gap_after == report.gap_before < 1e-12
    with torch.no_grad():
        assert_close(snn(x, t), ann(x, t), 1e-12)


def test_sampler_inputs_are_states_of_the_sampling_path_and_follow_from_seed_and_step():
    ann = random_ann().float()
    sample = SampleConfig("ddim", 5, eta=1.0)
    first = sampler_batches(ann, sample, 8, seed=3, start_step=0)
    drawn = [next(first) for _ in range(3)]
    again = next(sampler_batches(ann, sample, 8, seed=3, start_step=2))
    assert_equal(again[0], drawn[2][0])
    assert_equal(again[1], drawn[2][1])
    times = set()
    generate(ann, sample, range(1), hooks=Hooks(on_step=lambda step, x: times.add(step)))
    assert set(torch.cat([t for _, t in drawn]).tolist()) <= times
    noisiest = max(times)
    latest = torch.cat([x[t == noisiest] for x, t in drawn])
    assert latest.std() == pytest.approx(1, abs=0.15)  # the first state is pure noise


@pytest.mark.parametrize("method", ["proxy", "bptt"])
def test_every_block_of_a_spike_driven_network_can_be_tuned(method):
    ann, snn, proxy = trio(spike_driven=True)
    tuning = BlockTuning(2, 1e-4, method=method, calibrate=True)
    for name in tunable_blocks(snn):
        report = tune_block(name, Networks(ann, snn, proxy), batches(ann), [random_batch(ann)], tuning)
        assert report.gap_after <= report.gap_before
        assert report.steps == (2 if report.gap_before > 0 else 0)
