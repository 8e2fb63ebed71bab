"""The network with attention goes through training, sampling and evaluation; with --bit it converts as well."""

import json
import os
import signal

import pytest
import torch

import ann2snn
from ann2snn.checkpoints import checkpoint
from ann2snn.errors import UserError
from ann2snn.metrics.features import Lite0Extractor
from ann2snn.metrics.precision_recall import precision_recall
from ann2snn.nets.attention_unet import AttentionUNet, AttentionUNetConfig
from ann2snn.stages import train
from tests.scripts import SAMPLING, check, four_blocks, processes, script
from tests.stages.test_bad_input import refused
from tests.stages.test_parallel import CLOSE, check_all, distance, images, state
from tests.stages.test_resume import assert_same_run

DATA = ["--dataset_type=fashion_mnist_10k", "--img_size=8", "--num_threads=1", "--device=cpu"]
NETWORK = [
    "--arch=attention", "--ch=8", "--ch_mult=1", "--ch_mult=2", "--attn=1", "--num_res_blocks=1", "--norm_groups=4",
    "--dropout=0.1", "--T=50", *DATA,
]  # fmt: skip
CONFIG = {"in_channels": 1, "image_size": 8, "ch": 8, "ch_mult": (1, 2), "num_res_blocks": 1, "norm_groups": 4}
LITE = ["--extractor=lite0", "--lite0_size=32"]
K, REAL, GENERATED = 4, 50, 20


def train_flags(logdir, steps, *extra):
    """A training run of seconds with all that a resumed or a shared one could get wrong."""
    return [
        "--train",
        f"--logdir={logdir}",
        *NETWORK,
        f"--total_steps={steps}",
        "--warmup=3",
        "--batch_size=8",
        "--lr=1e-3",
        "--ema_warmup",
        "--log_step=1",
        "--save_step=2",
        "--sample_step=0",
        *extra,
    ]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A folder trained for 4 steps, with a sample grid."""
    logdir = tmp_path_factory.mktemp("attention") / "run"
    check(script("ANN_train.py", *train_flags(logdir, 4, "--sample_step=4", "--sample_size=4", *SAMPLING)))
    return logdir


def test_the_checkpoint_carries_the_architecture(run):
    raw = torch.load(run / "ckpt.pt", weights_only=True)
    assert raw["config"]["arch"] == "attention"
    net = ann2snn.load(run / "ckpt.pt")
    assert isinstance(net, AttentionUNet)
    assert net.config == AttentionUNetConfig(**CONFIG, attn=(1,), dropout=0.1)
    assert all(torch.equal(value, raw["ema_model"][name]) for name, value in net.state_dict().items())
    assert ann2snn.sample(net, 2, steps=2).shape == (2, 1, 8, 8)
    assert (run / "sample" / "4.png").is_file()


def test_ema_warmup_follows_the_published_decays(tmp_path):
    """After the first step of decay 1/10 the average is 9/10 of the way from the first weights to the second."""
    flags = train_flags(tmp_path / "kept", 2, "--save_step=1")
    first = {}

    def remember():
        original = train.Trainer.update_ema

        def update_ema(self):
            if not first:
                first.update({name: value.clone() for name, value in self.ema.state_dict().items()})
                torch.save(first, tmp_path / "first.pt")
            original(self)

        train.Trainer.update_ema = update_ema

    check(script("ANN_train.py", *flags, before=remember))
    start = torch.load(tmp_path / "first.pt", weights_only=True)
    one, two = (torch.load(tmp_path / "kept" / name, weights_only=True) for name in ("ckpt.prev.pt", "ckpt.pt"))
    assert (one["step"], two["step"]) == (1, 2)
    for name, value in start.items():
        after_one = value + 9 / 10 * (one["net_model"][name] - value)
        after_two = after_one + 9 / 11 * (two["net_model"][name] - after_one)
        torch.testing.assert_close(one["ema_model"][name], after_one, rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(two["ema_model"][name], after_two, rtol=1e-5, atol=1e-7)


def test_training_killed_continues_as_if_nothing_had_happened(tmp_path, run):
    killed, flags = tmp_path / "killed", ["--sample_step=4", "--sample_size=4", *SAMPLING]

    def kill_at_step_3():
        original = train.Trainer.train_step

        def train_step(self, *batch):
            if self.step == 3:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(self, *batch)

        train.Trainer.train_step = train_step

    done = script("ANN_train.py", *train_flags(killed, 4, *flags), before=kill_at_step_3)
    assert done.returncode == -signal.SIGKILL
    assert torch.load(killed / "ckpt.pt", weights_only=True)["step"] == 2
    assert "resuming" in check(script("ANN_train.py", *train_flags(killed, 4, *flags)))
    assert_same_run(run, killed)


def test_training_by_two_processes_follows_that_of_one(tmp_path, run):
    """Dropout is on: the masks of a step do not depend on who computes which part."""
    check_all(processes(2, "ANN_train.py", *train_flags(tmp_path, 4)))
    for key in ("net_model", "ema_model"):
        assert distance(state(tmp_path / "ckpt.pt", key), state(run / "ckpt.pt", key)) < CLOSE
    check(script("ANN_train.py", *train_flags(tmp_path / "plain", 4, "--dropout=0")))
    assert distance(state(tmp_path / "plain" / "ckpt.pt"), state(run / "ckpt.pt")) > 5 * CLOSE


def test_a_resumed_run_must_keep_network_and_average(run):
    before = (run / "ckpt.pt").read_bytes()
    for flag, words in {"--attn=0": "attn=(1,)", "--noema_warmup": "ema_warmup=True", "--arch=unet": "arch="}.items():
        refused(script("ANN_train.py", *train_flags(run, 6), flag), "cannot resume", words)
    assert (run / "ckpt.pt").read_bytes() == before


@pytest.fixture(scope="module")
def evaluated(run, tmp_path_factory):
    """{number of processes: (images, line of scores)} with precision and recall."""
    folder, found = tmp_path_factory.mktemp("evaluated"), {}
    stats = f"--fid_cache={folder}/stats.npz"
    check(script("evaluate.py", "--make_stats", "--num_images=60", *DATA, *LITE, stats))
    for count in (1, 2):
        logdir = folder / str(count)
        flags = [f"--logdir={logdir}", f"--eval_model_path={run}/ckpt.pt", f"--images_dir={logdir}/images", *LITE]
        flags += [f"--num_images={GENERATED}", "--batch_size=3", stats, *SAMPLING, "--precision_recall"]
        flags += [f"--pr_k={K}", f"--pr_images={REAL}", "--num_threads=1", "--device=cpu"]
        out = check_all(processes(count, "evaluate.py", "--eval", *flags))
        assert "precision 0." in out or "precision 1" in out
        assert "published figures are made with VGG16" in out
        found[count] = images(logdir / "images"), json.loads((logdir / "snn_eval.txt").read_text())
    return folder, found


def test_evaluation_by_two_processes_is_that_of_one(evaluated):
    (pictures, one), (others, two) = (evaluated[1][count] for count in (1, 2))
    assert len(pictures) == GENERATED and pictures == others
    for name in ("precision", "recall", "pr_k", "pr_images", "pr_data", "count", "arch", "bits"):
        assert one[name] == two[name], name
    assert one["FD_efficientnet_lite0"] == pytest.approx(two["FD_efficientnet_lite0"], rel=1e-10)
    assert (one["arch"], one["bits"], one["spiking"], one["pr_k"], one["pr_images"]) == ("attention", 32, None, K, REAL)


def test_precision_and_recall_are_those_of_the_features(evaluated):
    """Features extracted here, of the files and of the data set's first training images: the recorded figures."""
    folder, found = evaluated
    from ann2snn.data import load_dataset
    from ann2snn.generate.images import read_images

    extract = Lite0Extractor(32)
    paths = sorted((folder / "1" / "images").glob("*.png"))
    data = load_dataset("fashion_mnist_10k", "", 8)
    real = extract(torch.stack([data[i] for i in range(REAL)])).features
    pair = precision_recall(real, extract(read_images(paths, like=paths[0])).features, K)
    assert pair == (found[1][1]["precision"], found[1][1]["recall"])


def test_precision_of_too_few_images_is_refused_before_sampling(run, tmp_path, evaluated):
    flags = [f"--logdir={tmp_path}/new", f"--eval_model_path={run}/ckpt.pt", *LITE, *SAMPLING, "--precision_recall"]
    flags += [f"--fid_cache={evaluated[0]}/stats.npz"]
    refused(script("evaluate.py", "--eval", *flags, "--num_images=3", "--pr_images=50"), "--pr_k=3", "--num_images")
    refused(script("evaluate.py", "--eval", *flags, "--num_images=50", "--pr_images=3"), "--pr_k=3", "--pr_images")
    refused(script("evaluate.py", "--eval", *flags, "--pr_k=0"), "--pr_k=0")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("stage", [["SNN_conversion.py", "--eval"], ["SNN_ft.py", "--fine_tune"]], ids=lambda s: s[0])
def test_spiking_stages_refuse_before_they_write(run, stage):
    before = sorted(run.rglob("*"))
    refused(script(*stage, f"--logdir={run}"), "--bit=32", "full-precision")
    assert sorted(run.rglob("*")) == before


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--arch=attention", "--bit=9"], "--bit=9"),
        (["--arch=attention", "--weight_bit=4"], "--weight_bit=4"),
        (["--arch=attention", "--spike_driven"], "--spike_driven"),
        (["--arch=attention", "--attn=7"], "--attn=7"),
        (["--arch=attention", "--block_size=3"], "--block_size=3"),
        (["--arch=unet", "--block_size=2"], "--block_size=2"),
        (["--arch=resnet"], "--arch"),
    ],
)
def test_flags_that_do_not_go_together(tmp_path, flags, words):
    refused(script("ANN_train.py", "--train", f"--logdir={tmp_path}/new", *flags), words)
    assert not (tmp_path / "new").exists()


def test_a_flag_that_contradicts_the_file_is_named_with_both_values(run, tmp_path):
    common = ["evaluate.py", "--sample_only", f"--logdir={tmp_path}/new", f"--eval_model_path={run}/ckpt.pt"]
    for flag, words in {"--attn=0": "made with 1", "--arch=unet": "attention", "--bit=2": "32", "--T=9": "50"}.items():
        refused(script(*common, flag), flag, "contradicts", words)


def _payload(**changes):
    net = AttentionUNet(AttentionUNetConfig(**CONFIG, attn=(1,)))
    config = {"arch": "attention", "unet": net.config.to_dict(), "diffusion": net.diffusion.to_dict()}
    whole = {"kind": "ann", "format": 1, "net_model": net.state_dict(), "ema_model": net.state_dict(), "step": 3}
    for name, value in changes.items():
        config["unet"][name] = value
    return whole | {"config": config}


def test_pixel_blocks_are_saved_and_loaded(tmp_path):
    net = AttentionUNet(AttentionUNetConfig(**CONFIG, attn=(), block_size=2))
    config = {"arch": "attention", "unet": net.config.to_dict(), "diffusion": net.diffusion.to_dict()}
    checkpoint.save(tmp_path / "a.pt", {"ema_model": net.state_dict(), "config": config, "kind": "ann", "format": 1})
    loaded = ann2snn.load(tmp_path / "a.pt")
    x, t = torch.randn(2, 1, 8, 8), torch.tensor([3, 40])
    assert torch.equal(loaded(x, t), net.eval()(x, t))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"ch": 4096, "ch_mult": [2**40] * 4}, "cannot be built"),
        ({"ch": 4096, "ch_mult": [64] * 4, "num_res_blocks": 16}, "expected|missing"),
        ({"ch": 16}, "expected"),
        ({"attn": []}, "unknown entr"),
        ({"attn": [0, 1]}, "missing"),
        ({"attn": [9]}, "--attn=9"),
        ({"out_channels": 3}, "output channels"),
        ({"in_channels": 5}, "image channels"),
        ({"colour": 3}, "unreadable"),
        ({"ch_mult": "ab"}, "invalid"),
        ({"attn": 3}, "unreadable"),
    ],
)
def test_a_description_that_is_not_the_weights_is_refused(tmp_path, changes, words):
    checkpoint.save(tmp_path / "a.pt", _payload(**changes))
    with pytest.raises(UserError, match=words):
        ann2snn.load(tmp_path / "a.pt")


@pytest.mark.parametrize("arch", ["unet", "resnet", 3, None, ["attention"], {"a": 1}])
def test_an_architecture_that_is_not_that_of_the_weights_is_refused(tmp_path, arch):
    payload = _payload()
    payload["config"]["arch"] = arch
    checkpoint.save(tmp_path / "a.pt", payload)
    with pytest.raises(UserError, match="refusing"):
        ann2snn.load(tmp_path / "a.pt")


def test_its_operations_are_counted_those_of_attention_as_well():
    """At level 1, 4 × 4 pixels are 16 queries and 16 keys of 16 channels, in each of four blocks."""
    net = AttentionUNet(AttentionUNetConfig(**CONFIG, attn=(1,)))
    account = ann2snn.cost(net, torch.randn(1, 1, 8, 8), torch.tensor([3]))
    products = {layer.name: layer.synapses for layer in account.layers if layer.kind == "product"}
    assert len(products) == 2 * 4 and set(products.values()) == {16 * 16 * 16}
    assert sum(name.endswith(":query·key") for name in products) == 4
    assert account.bits == 32 and set(account.energies()) == {"fp32"}
    assert account.total("parameters") == sum(p.numel() for p in net.parameters())


def test_full_precision_is_no_spiking_network(tmp_path):
    checkpoint.save(tmp_path / "a.pt", _payload() | {"kind": "snn"})
    with pytest.raises(UserError, match="no network of kind .snn."):
        ann2snn.load(tmp_path / "a.pt")
    with pytest.raises(UserError, match="full-precision"):
        ann2snn.convert(AttentionUNet(AttentionUNetConfig(**CONFIG, attn=(1,))))


# ---- quantized -------------------------------------------------------------------------------------------------------


def test_quantizers_stand_where_quantize_puts_them():
    batch = torch.randn(2, 1, 8, 8), torch.tensor([3, 40])
    plain = AttentionUNet(AttentionUNetConfig(**CONFIG, attn=(1,))).eval()
    placed = ann2snn.quantize(plain, 3, calibrate=[batch], signed=True)
    built = AttentionUNet(AttentionUNetConfig(**CONFIG, attn=(1,), bits=3)).eval()
    assert built.state_dict().keys() == placed.state_dict().keys()
    built.load_state_dict(placed.state_dict())
    with torch.no_grad():
        assert torch.equal(built(*batch), placed(*batch))


@pytest.mark.slow
def test_the_four_stages_of_a_quantized_network(tmp_path):
    """--bit given by hand quantizes it; trained, converted, tuned and sampled, its spiking network is exact."""
    logdir = tmp_path / "run"
    flags = ["--train", f"--logdir={logdir}", *NETWORK, "--bit=2", "--total_steps=3", "--warmup=1", "--batch_size=8"]
    check(script("ANN_train.py", *flags, "--sample_step=0"))
    ann = ann2snn.load(logdir / "ckpt.pt").double()
    assert ann.config.bits == 2
    steps = {
        name: float(m.scale.detach()) for name, m in ann.named_modules() if hasattr(m, "levels") and hasattr(m, "scale")
    }
    assert len(steps) > 20 and all(step != 1 for step in steps.values())  # all were calibrated, q, k and v among them
    few = ["--gen_images=0", "--gap_images=1", *SAMPLING, "--num_threads=1", "--device=cpu"]
    check(script("SNN_conversion.py", "--eval", f"--logdir={logdir}", "--schedule=stream", *few))
    snn = ann2snn.load(logdir / "converted_snn.pt", settle_steps="auto").double()
    batch = torch.randn(2, 1, 8, 8, dtype=torch.float64), torch.tensor([3, 40])
    with torch.no_grad():
        assert (snn(*batch) - ann(*batch)).abs().max() <= 1e-12
    assert any(name.endswith("query·key") for name in snn.describe().reads_spikes)
    reports = json.loads((logdir / "gap.json").read_text())["reports"]
    assert reports[0]["blocks"] and all(row["error"] == 0 for row in reports[0]["blocks"])  # layer_sync
    tune = [
        "--fine_tune",
        f"--logdir={logdir}",
        "--ft_steps=1",
        "--ft_batch_size=4",
        "--sample_step=0",
        "--gap_images=0",
        *few[2:],
    ]
    check(script("SNN_ft.py", *tune, "--schedule=stream", *DATA[:1], before=four_blocks))
    best = logdir / "SNN_2bit_ft" / "model_best.pt"
    check(
        script(
            "evaluate.py",
            "--sample_only",
            f"--logdir={logdir}",
            f"--eval_model_path={best}",
            "--num_images=2",
            *SAMPLING,
            "--num_threads=1",
            "--device=cpu",
        )
    )
