"""A network that is told classes: exact when converted, and guided alike; what images and calls are then made of."""

import numpy as np
import pytest
import torch

import ann2snn
from ann2snn.config import NO_CLASS, SampleConfig, UNetConfig
from ann2snn.errors import UserError
from ann2snn.generate.classes import columns
from ann2snn.generate.probe import sampler_calls, sampler_states
from ann2snn.generate.sampling import Hooks, generate, generate_all
from ann2snn.hardware.export import check_exported
from ann2snn.nets import UNet
from ann2snn.nets.attention_unet import AttentionUNet, AttentionUNetConfig
from tests.helpers import assert_close, assert_equal, random_ann, random_batch

NAMES = ("bag", "coat", "dress")
DDIM = {"sampler": "ddim", "steps": 4, "clip": False}
COUNT = 5


def net_of(**options: object) -> UNet:
    return random_ann(1, in_channels=1, num_classes=3, class_names=NAMES, **options)


@pytest.fixture(scope="module")
def ann():
    return net_of()


@pytest.fixture(scope="module")
def snn(ann):
    return ann2snn.convert(ann)


def images(net, n: int = COUNT, **how: object) -> torch.Tensor:
    return ann2snn.sample(net, n, progress=False, **DDIM | how)


class TestNetwork:
    def test_an_unconditional_network_has_the_parameters_and_answers_it_had(self, ann):
        plain = random_ann(1, in_channels=1)
        added = ann.state_dict().keys() - plain.state_dict().keys()
        assert added == {"class_embedding.weight"} and ann.class_embedding.weight.shape == (4, 32)
        assert_equal(plain(*random_batch(plain)), random_ann(1, in_channels=1)(*random_batch(plain)))
        stored = plain.config.to_dict()
        assert (
            UNetConfig(**{k: v for k, v in stored.items() if "class" not in k}) == plain.config
        )  # an old checkpoint's

    def test_told_no_class_is_the_last_row_and_a_row_is_added_to_the_embedding_of_time(self, ann):
        x, t = random_batch(ann, 3)
        null = torch.full((3,), 3)
        assert_equal(ann(x, t), ann(x, t, null))
        with torch.no_grad():
            moved, other = net_of(), torch.tensor([0, 1, 2])
            moved.time_embedding.timembedding[-1].bias += moved.class_embedding.weight[1]
            moved.class_embedding.weight[:] = 0
        assert_close(moved(x, t), ann(x, t, torch.ones(3, dtype=torch.int64)), 1e-12)
        rows = ann(x, t, other) - ann(x, t)
        assert rows.flatten(1).norm(dim=1).min() > 1e-3

    def test_each_row_has_its_own_class(self, ann):
        x, t = random_batch(ann, 3)
        together = ann(x, t, torch.tensor([2, 3, 0]))
        for row, label in enumerate((2, 3, 0)):
            alone = ann(x, t, torch.full((3,), label))[row]
            torch.testing.assert_close(together[row], alone, rtol=1e-10, atol=1e-12)

    @pytest.mark.parametrize("y", [[0, 4], [-1, 0], [0], [0.0, 1.0]])
    def test_labels_that_are_none_are_refused(self, ann, y):
        with pytest.raises(UserError, match="y: .* expected"):
            ann(*random_batch(ann, 2), torch.tensor(y))

    def test_an_unconditional_network_takes_no_labels(self):
        plain = random_ann()
        with pytest.raises(UserError, match="knows no classes"):
            plain(*random_batch(plain, 2), torch.tensor([0, 1]))

    @pytest.mark.parametrize("wrong", [{"num_classes": 1}, {"num_classes": -2}, {"num_classes": 2.5}])
    def test_impossible_numbers_and_names_of_classes_are_refused(self, wrong):
        with pytest.raises(UserError):
            UNetConfig(**wrong)
        with pytest.raises(UserError, match="3 class_names for num_classes=2"):
            UNetConfig(num_classes=2, class_names=NAMES)

    def test_a_folder_and_a_checkpoint_keep_classes_and_names(self, ann, snn, tmp_path):
        for net, name in ((ann, "folder"), (snn, "file.pt")):
            ann2snn.save(net, tmp_path / name, **({"dtype": "float64"} if name == "folder" else {}))
            again = ann2snn.load(tmp_path / name)
            assert (again.num_classes, tuple(again.class_names)) == (3, NAMES)
            call = (*random_batch(ann, 2), torch.tensor([1, 3]))
            assert_equal(again.double()(*call), ann(*call))


class TestConversion:
    @pytest.mark.parametrize("how", [{}, {"schedule": "stream", "settle_steps": "auto"}])
    @pytest.mark.parametrize("options", [{}, {"spike_driven": True, "bits": 3}])
    def test_it_is_exact_from_rest_and_carried(self, options, how):
        ann = net_of(**options)
        snn = ann2snn.convert(ann, **how)
        call = (*random_batch(ann, 4), torch.tensor([0, 1, 2, 3]))
        gap = ann2snn.gap(ann, snn, *call)
        assert gap.prediction.error <= (0 if not how else 1e-12)
        with snn.carrying(), torch.no_grad():
            for seed in range(3):
                x, t = random_batch(ann, 4, seed)
                torch.testing.assert_close(snn(x, t, call[2]), ann(x, t, call[2]), rtol=1e-11, atol=1e-12)
            assert snn.restarts == 1

    def test_the_unet_with_attention_too(self):
        torch.manual_seed(0)
        shape = {"in_channels": 1, "image_size": 4, "ch": 8, "ch_mult": (1, 2), "num_res_blocks": 1, "norm_groups": 2}
        net = AttentionUNet(AttentionUNetConfig(**shape, bits=3, num_classes=3)).double().eval()
        for parameter in net.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        call = (torch.randn(2, 1, 4, 4, dtype=torch.float64), torch.tensor([3, 700]), torch.tensor([0, 3]))
        snn = ann2snn.convert(net)
        assert_equal(snn(*call), net(*call))
        assert not torch.equal(net(*call)[0], net(*call[:2])[0])

    def test_quantization_after_training_calibrates_on_calls_with_classes(self):
        plain = net_of(bits=32)
        call = (*random_batch(plain, 4), torch.tensor([0, 1, 2, 3]))

        class Own(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.embed, self.one, self.two = (
                    torch.nn.Embedding(4, 8),
                    torch.nn.Linear(16, 8),
                    torch.nn.Linear(8, 16),
                )

            def forward(self, x, t, y):
                return self.two(torch.relu(self.one(x.flatten(1)) + self.embed(y))).view_as(x)

        own = Own().double()
        q = ann2snn.quantize(own, bits=4, calibrate=[call])
        assert_equal(ann2snn.convert(q)(*call), q(*call))

    def test_a_graph_for_hardware_has_no_place_for_a_class_and_is_refused(self, snn):
        with pytest.raises(UserError, match="class-conditional network has no NIR graph"):
            check_exported(snn)

    def test_costs_are_those_of_the_branches_and_differ_between_classes(self, ann, snn):
        calls = ann2snn.trajectory(ann, 2, guidance=1.0, labels=[0, 2], steps=3)
        assert [tuple(y.tolist()) for _, _, y in calls] == [(0, 2, 3, 3)] * 3
        assert all(torch.equal(x[:2], x[2:]) and torch.equal(t[:2], t[2:]) for x, t, _ in calls)
        both = ann2snn.cost(snn, trajectory=calls, carry=True)
        halves = [
            ann2snn.cost(snn, trajectory=[tuple(v[part] for v in call) for call in calls], carry=True)
            for part in (slice(0, 2), slice(2, 4))
        ]
        assert both.total("spikes") == pytest.approx(sum(half.total("spikes") for half in halves) / 2)

    def test_gap_cost_and_raster_are_of_images_with_classes(self, ann):
        x, t, y = sampler_states(ann, 4, 2, 0)
        assert y.tolist() == [0, 1, 2, 0] * 2 and len(x) == len(t) == 8


class TestSampling:
    def test_without_guidance_one_branch_is_asked(self, ann):
        calls = sampler_calls(ann, SampleConfig(**DDIM, guidance=0.0), 4)
        assert [y.tolist() for _, _, y in calls] == [[0, 1, 2, 0]] * 4
        assert_equal(images(ann, labels=[0, 1, 2, 0, 1]), images(ann))
        assert_equal(images(ann, guidance=0.0), images(ann))

    def test_no_class_is_the_network_without_labels(self, ann):
        class Untold(torch.nn.Module):
            in_channels, image_size, diffusion = 1, ann.image_size, ann.diffusion

            def __init__(self) -> None:
                super().__init__()
                self.net = ann

            def forward(self, x, t):
                return self.net(x, t)

        assert_equal(images(ann, labels=NO_CLASS), images(Untold()))
        assert_equal(images(ann, labels=[3] * COUNT), images(Untold()))
        assert not torch.equal(images(ann), images(Untold()))

    def test_guidance_is_the_formula(self, ann):
        class Guided(torch.nn.Module):
            in_channels, image_size, diffusion = 1, ann.image_size, ann.diffusion

            def __init__(self) -> None:
                super().__init__()
                self.net = ann

            def forward(self, x, t):
                return 3.0 * self.net(x, t, torch.full((len(x),), 1)) - 2.0 * self.net(x, t)

        ours, plain = images(ann, guidance=2.0, labels=1), images(Guided())
        assert (ours.int() - plain.int()).abs().max() <= 1  # the batch is another, and so is the last bit
        assert not torch.equal(ours, images(ann, labels=1))

    @pytest.mark.parametrize("carry", [False, True])
    def test_a_spiking_network_is_guided_as_its_quantized_one(self, ann, snn, carry):
        assert_equal(images(snn, guidance=1.5, carry=carry), images(ann, guidance=1.5))
        calls = [sampler_calls(net, SampleConfig(**DDIM, guidance=1.5), 3) for net in (ann, snn)]
        assert all(
            torch.equal(a, b) for ours, theirs in zip(*calls, strict=True) for a, b in zip(ours, theirs, strict=True)
        )

    def test_an_image_is_the_same_whichever_others_are_asked_for(self, snn):
        found = []
        config = SampleConfig(**DDIM, guidance=2.0, carry=True)
        whole = generate_all(snn, config, 40, 64, progress=False)
        alone = generate(snn, config, [33, 2], hooks=Hooks(on_spikes=found.extend))
        assert_equal(alone, whole[[33, 2]])
        again = []
        generate(snn, config, range(40), hooks=Hooks(on_spikes=again.extend))
        kept = {one.image: one for one in again}
        assert all(one == kept[one.image] and one.spikes > 0 for one in found) and len(found) == 2

    def test_spikes_of_an_image_are_those_of_both_branches(self, snn):
        def spikes(**how):
            found = []
            generate(snn, SampleConfig(**DDIM | {"steps": 1}, **how), range(3), hooks=Hooks(on_spikes=found.extend))
            return [one.spikes for one in found]

        both, told, untold = spikes(guidance=1.0), spikes(), spikes(class_label=NO_CLASS)
        assert both == [a + b for a, b in zip(told, untold, strict=True)]

    def test_classes_have_names(self, ann):
        assert_equal(images(ann, labels="dress"), images(ann, labels=np.int64(2)))
        assert_equal(images(ann, labels=["bag", 1, "none", 3, "dress"]), images(ann, labels=[0, 1, 3, 3, 2]))

    def test_given_images_are_told_no_class_unless_one_is_named(self, ann):
        given = images(ann)
        plain = ann2snn.edit(ann, given, 0.5, steps=3)
        assert_equal(plain, ann2snn.edit(ann, given, 0.5, steps=3, class_label=NO_CLASS))
        assert not torch.equal(plain, ann2snn.edit(ann, given, 0.5, steps=3, class_label="bag", guidance=1.0))
        assert len(ann2snn.interpolate(ann, 1, 2, 3, steps=3)) == 3

    def test_grids_have_a_class_a_column(self, ann):
        assert columns(ann, SampleConfig(), 12) == 3 and columns(ann, SampleConfig(class_label=1), 16) == 4
        assert columns(random_ann(), SampleConfig(), 16) == 4

    @pytest.mark.parametrize(
        ("how", "words"),
        [
            ({"labels": 3}, "--class_label=3: use 0 to 2"),
            ({"labels": -1}, "use 0 or more"),
            ({"labels": "hat"}, "no class has this name; use one of bag, coat, dress"),
            ({"labels": [0, 1]}, "labels: expected 5"),
            ({"labels": [0, 1, 2, 3, 4]}, "use 0 to 2"),
            ({"labels": [0.5] * 5}, "whole number"),
            ({"guidance": -1.0}, "--guidance=-1.0: use 0"),
            ({"guidance": float("nan")}, "--guidance=nan: must be a finite number"),
            ({"guidance": "2"}, "--guidance=2: must be"),
            ({"guidance": 1.0, "labels": NO_CLASS}, "guides towards a class"),
            ({"sampler": "analytic_dpm"}, "told no class"),
        ],
    )
    def test_what_makes_no_sense_is_refused(self, ann, how, words):
        with pytest.raises(UserError, match=words):
            images(ann, **how)

    @pytest.mark.parametrize("how", [{"guidance": 1.0}, {"labels": 0}, {"labels": [0] * 5}])
    def test_an_unconditional_network_is_neither_guided_nor_told_a_class(self, how):
        with pytest.raises(UserError, match="knows no classes"):
            images(random_ann(in_channels=1), **how)


def test_labels_are_said_once_and_in_any_sequence(ann):
    assert_equal(images(ann, 3, labels=range(3)), images(ann, 3, labels=[0, 1, 2]))
    for labels in (1, [0, 1, 2]):
        with pytest.raises(UserError, match="^labels and class_label: .* give one"):
            images(ann, 3, labels=labels, class_label=2)
        with pytest.raises(UserError, match="^labels and class_label: .* give one"):
            ann2snn.trajectory(ann, 3, labels=labels, class_label=2)
