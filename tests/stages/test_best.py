"""best.pt holds the averaged weights of the lowest Fréchet distance of a training, interrupted or not."""

import json
import math
from types import SimpleNamespace

import pytest
import torch

from ann2snn.checkpoints import checkpoint
from ann2snn.config import DiffusionConfig, ImageSize, SampleConfig, TrainConfig, UNetConfig
from ann2snn.data.datasets import ImageDataset, ImageSource
from ann2snn.distributed.world import ALONE
from ann2snn.errors import UserError
from ann2snn.files.atomic import file_hash
from ann2snn.nets.sddpm import SDDPMConfig
from ann2snn.run.folder import RunFolder
from ann2snn.stages import train
from ann2snn.stages.plan import Training
from ann2snn.training import best
from tests.scripts import SAMPLING, check, processes, script, train_flags

SHAPE = {"in_channels": 1, "image_size": 4, "ch": 8, "ch_mult": (1,), "num_res_blocks": 1, "dropout": 0.0}
UNET = UNetConfig(**SHAPE, bits=2, norm_groups=2, diffusion_steps=20)
SPIKING = SDDPMConfig(**SHAPE, spike_steps=2, diffusion_steps=20)


def noise_images() -> ImageDataset:
    images = torch.randint(256, (16, 1, 4, 4), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return ImageDataset(ImageSource("folder", "train", images.__getitem__, 16, 1, ImageSize(4, 4), flip=False))


class Scores:
    """Gives the averaged weights the distances listed, and remembers the weights; the raw ones are always better."""

    def __init__(self, *distances: float, name: str = "FID") -> None:
        self.left, self.name, self.calls, self.scored = list(distances), name, 0, []

    def __call__(self, net: torch.nn.Module) -> dict[str, float]:
        self.calls += 1
        if self.calls % 2:
            return {"IS": 1.0, self.name: -1.0}
        self.scored.append({name: value.clone() for name, value in net.state_dict().items()})
        return {"IS": float(self.calls), self.name: self.left.pop(0)}


HOW = {"images": 16, "extractor": "lite0", "statistics": "1" * 16}
SAMPLED = SampleConfig("ddim", steps=2)


def run(folder, steps: int, scores: Scores, network=UNET, sample=SAMPLED, **how: object) -> dict | None:
    """Train, a score every second step and a checkpoint every fourth; best.pt's content."""
    schedule = train.Schedule(0, 4, 1, 1, eval_step=2, score=scores, score_settings=HOW | how)
    config = TrainConfig("folder", total_steps=steps, warmup=0, batch_size=4, dropout=0.0, ema_decay=0.5)
    folder.mkdir(exist_ok=True)
    setting = (network, DiffusionConfig(diffusion_steps=20), config, sample, schedule, ALONE)
    assert train.run(Training(RunFolder(folder), noise_images(), *setting)) == 0
    path = folder / train.BEST
    return checkpoint.read(path) if path.exists() else None


def same(state: dict, other: dict) -> bool:
    return state.keys() == other.keys() and all(torch.equal(state[name], other[name]) for name in state)


@pytest.mark.parametrize(
    "network", [UNET, pytest.param(SPIKING, marks=pytest.mark.slow)], ids=lambda config: config.arch
)
@pytest.mark.parametrize(
    ("distances", "step"),
    [((5.0, 4.0, 3.0), 6), ((3.0, 4.0, 5.0), 2), ((5.0, 3.0, 4.0), 4), ((3.0, 3.0, 3.0), 2), ((math.nan, 3.0, 4.0), 4)],
)
def test_the_weights_of_the_lowest_distance_are_kept(tmp_path, network, distances, step):
    scores = Scores(*distances)
    stored = run(tmp_path, 6, scores, network)
    assert (stored["step"], stored["best_metric"], stored["best_score"]) == (step, "FID_EMA", 3.0)
    assert same(stored["ema_model"], scores.scored[step // 2 - 1])
    loaded = checkpoint.load(tmp_path / train.BEST)  # as every stage loads it
    assert loaded.step == step and same(loaded.net.state_dict(), stored["ema_model"])
    assert not same(stored["ema_model"], stored["net_model"])
    last = checkpoint.read(tmp_path / train.CHECKPOINT)
    assert last["step"] == 6 and "best_score" not in last
    assert stored.keys() - last.keys() == {"best_score", "best_metric", "best_how"}


def test_a_resumed_run_does_not_overwrite_a_better_one(tmp_path):
    run(tmp_path, 4, Scores(5.0, 3.0))
    before = (tmp_path / train.BEST).read_bytes()
    assert run(tmp_path, 8, Scores(4.0, 3.5))["step"] == 4
    assert (tmp_path / train.BEST).read_bytes() == before
    assert run(tmp_path, 10, Scores(2.5))["step"] == 10


OTHERWISE = {
    "images=16, now 32": {"images": 32},
    "extractor=lite0, now inception": {"extractor": "inception"},
    "statistics=1111111111111111, now 2222222222222222": {"statistics": "2" * 16},
    "sampler=ddim, now ddpm_strided": {"sample": SampleConfig("ddpm_strided", steps=2)},
    "sampler_steps=2, now 3": {"sample": SampleConfig("ddim", steps=3)},
    "eta=0.0, now 0.5": {"sample": SampleConfig("ddim", steps=2, eta=0.5)},
    "skip=unset, now quadratic": {"sample": SampleConfig("ddim", steps=2, skip="quadratic")},
    "clip_x0=True, now False": {"sample": SampleConfig("ddim", steps=2, clip=False)},
}
QUICK = ("images=16, now 32", "sampler_steps=2, now 3", "skip=unset, now quadratic")  # of each kind of setting


def notes(capsys) -> list[str]:
    return [line for line in capsys.readouterr().out.splitlines() if line.startswith("note: ")]


@pytest.mark.parametrize(
    "said", [said if said in QUICK else pytest.param(said, marks=pytest.mark.slow) for said in OTHERWISE]
)
def test_scores_measured_in_other_ways_are_not_compared(tmp_path, capsys, said):
    run(tmp_path, 2, Scores(3.0))
    first = (tmp_path / train.BEST).read_bytes()
    stored = run(tmp_path, 4, Scores(9.0), **OTHERWISE[said])
    [note] = notes(capsys)
    assert "best.pt was scored with" in note and said in note and "best.prev.pt" in note
    assert (stored["step"], stored["best_score"]) == (4, 9.0)
    assert (tmp_path / "best.prev.pt").read_bytes() == first


def test_the_best_weights_of_other_scores_stay_until_there_is_a_score_and_then_beside_it(tmp_path, capsys):
    run(tmp_path, 2, Scores(3.0))
    first = (tmp_path / train.BEST).read_bytes()
    run(tmp_path, 4, Scores(math.nan), images=32)
    assert (tmp_path / train.BEST).read_bytes() == first and not (tmp_path / "best.prev.pt").exists()
    assert run(tmp_path, 6, Scores(9.0), images=32)["step"] == 6 and len(notes(capsys)) == 2
    assert run(tmp_path, 10, Scores(9.5, 8.0), images=32)["step"] == 10  # from here on as always
    assert not notes(capsys) and (tmp_path / "best.prev.pt").read_bytes() == first


def test_earlier_files_set_aside_are_numbered(tmp_path):
    run(tmp_path, 2, Scores(3.0))
    run(tmp_path, 4, Scores(9.0), images=32)
    run(tmp_path, 6, Scores(20.0), images=64)
    (tmp_path / train.CHECKPOINT).unlink()
    (tmp_path / "ckpt.prev.pt").unlink(missing_ok=True)
    run(tmp_path, 2, Scores(1.0))
    names = [train.BEST, "best.prev.pt", "best.prev.3.pt", "best.prev.2.pt"]
    assert [checkpoint.read(tmp_path / name)["best_score"] for name in names] == [1.0, 20.0, 9.0, 3.0]


def test_a_file_that_does_not_say_how_it_was_scored_loads_and_compares(tmp_path, capsys):
    stored = run(tmp_path, 2, Scores(3.0))
    path = tmp_path / train.BEST
    checkpoint.save(path, {name: value for name, value in stored.items() if name != "best_how"})
    assert checkpoint.load(path).step == 2
    before = path.read_bytes()
    capsys.readouterr()
    run(tmp_path, 4, Scores(4.0), images=32)
    [note] = notes(capsys)
    assert "does not say how it was scored" in note and path.read_bytes() == before
    assert run(tmp_path, 6, Scores(2.0), images=32)["best_how"]["images"] == 32
    assert not (tmp_path / "best.prev.pt").exists()


def test_a_resumed_run_that_scores_nothing_says_nothing(tmp_path, capsys):
    run(tmp_path, 2, Scores(3.0))
    before = (tmp_path / train.BEST).read_bytes()
    capsys.readouterr()
    run(tmp_path, 4, None)
    assert not notes(capsys) and (tmp_path / train.BEST).read_bytes() == before


def test_distances_of_another_name_are_not_compared(tmp_path, capsys):
    run(tmp_path, 2, Scores(3.0))
    first = (tmp_path / train.BEST).read_bytes()
    stored = run(tmp_path, 6, Scores(9.0, 8.0, name="FD_lite0"))
    assert (stored["step"], stored["best_metric"], stored["best_score"]) == (6, "FD_lite0_EMA", 8.0)
    said = capsys.readouterr()
    assert said.out.count("note: ") == 1 and "FID_EMA, now by FD_lite0_EMA" in said.out
    assert (tmp_path / "best.prev.pt").read_bytes() == first and said.err.count("WARNING") == 0
    assert run(tmp_path / "none", 4, Scores(9.0, 8.0, name="precision")) is None


def test_a_damaged_file_is_replaced_by_the_next_score(tmp_path, capsys):
    run(tmp_path, 2, Scores(3.0))
    (tmp_path / train.BEST).write_bytes(b"PK")
    assert run(tmp_path, 4, Scores(7.0))["best_score"] == 7.0
    [line] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("WARNING")]
    assert "best.pt" in line and "the next score counts as the best" in line


def test_a_training_that_begins_anew_sets_an_earlier_one_aside(tmp_path, capsys):
    run(tmp_path, 2, Scores(3.0))
    hashed = file_hash(tmp_path / train.BEST)
    (tmp_path / train.CHECKPOINT).unlink()
    assert run(tmp_path, 2, Scores(7.0))["best_score"] == 7.0
    assert file_hash(tmp_path / "best.prev.pt") == hashed and "best.prev.pt" in capsys.readouterr().err


def keeper(folder, main: bool = True) -> best.BestKeeper:
    trainer = SimpleNamespace(step=3, world=SimpleNamespace(main=main), check_finite=lambda folder: None)
    trainer.payload = lambda x_T: {"ema_model": {"w": torch.ones(2)}, "step": 3, "x_T": x_T}
    return best.BestKeeper(trainer, folder / train.BEST, torch.zeros(1), HOW)


def test_the_first_distance_decides_and_the_main_process_writes(tmp_path):
    figures = {"FID": 0.5, "IS_EMA": 0.1, "FID_EMA": 2.0, "FID_lite0_EMA": 1.0}
    keeper(tmp_path, main=False).consider(figures)
    assert not list(tmp_path.iterdir())
    keeper(tmp_path).consider(figures)
    assert checkpoint.read(tmp_path / train.BEST)["best_metric"] == "FID_EMA"


def test_a_training_stores_how_it_scored_whatever_the_path_of_the_statistics(tmp_path, finished_run):
    stats = tmp_path / "elsewhere.npz"
    stats.write_bytes((finished_run[0] / "stats.npz").read_bytes())
    lite = ["--extractor=lite0", "--lite0_size=32", "--eval_step=2", *SAMPLING]

    def equal_scores() -> None:
        from ann2snn.cli import build

        build.score_numbered = lambda images, *_, **__: {"FD": float(bool(list(images)))}

    def train_to(steps: int, stats, images: int) -> list[str]:
        flags = train_flags(tmp_path / "run", steps, *lite, f"--fid_cache={stats}", f"--num_images={images}")
        told = check(script("ANN_train.py", *flags, before=equal_scores))
        return [line for line in told.splitlines() if "best.pt" in line]

    assert not train_to(2, finished_run[0] / "stats.npz", 4)
    how = checkpoint.read(tmp_path / "run" / train.BEST)["best_how"]
    assert how["statistics"] == file_hash(stats) and how["extractor"] == "efficientnet-lite0-1280@32px"
    assert (how["images"], how["sampler"], how["sampler_steps"], how["sampler_options"]) == (4, "ddim", 3, {})
    assert not train_to(4, stats, 4)
    [note] = train_to(6, stats, 3)
    assert "images=4, now 3" in note and (tmp_path / "run" / "best.prev.pt").exists()


@pytest.mark.slow
def test_two_processes_keep_and_resume_one_file(tmp_path):
    def train_to(steps: int, *distances: float) -> None:
        def before() -> None:
            from ann2snn.cli import build

            build.scorer = lambda sample, world: (Scores(*distances), HOW)

        done = processes(2, "ANN_train.py", *train_flags(tmp_path, steps, "--eval_step=2"), before=before)
        assert [process.returncode for process in done] == [0, 0], done[0].stderr[-2000:]

    train_to(4, 3.0, 4.0)
    hashed = file_hash(tmp_path / train.BEST)
    assert checkpoint.read(tmp_path / train.BEST)["step"] == 2
    train_to(6, 3.5)
    assert file_hash(tmp_path / train.BEST) == hashed


def test_a_disk_that_refuses_costs_the_best_weights_but_not_the_run(tmp_path, capsys, monkeypatch):
    def refuse(path, payload, keep_previous):
        raise UserError(f"cannot write {path}: no space")

    kept = keeper(tmp_path)
    monkeypatch.setattr(best.checkpoint, "save", refuse)
    kept.consider({"FID_EMA": 2.0})
    assert "no space" in capsys.readouterr().err and not list(tmp_path.iterdir())
    monkeypatch.undo()
    kept.consider({"FID_EMA": 3.0})  # better than any that is kept
    assert checkpoint.read(tmp_path / train.BEST)["best_score"] == 3.0


def test_evaluation_takes_the_best_weights_unless_told_otherwise(tmp_path):
    run(tmp_path, 4, Scores(3.0, 4.0))
    flags = ["--sample_only", f"--logdir={tmp_path}", "--num_images=2", "--num_threads=1", "--device=cpu", *SAMPLING]

    def evaluated(*more: str) -> tuple[str, set]:
        out = check(script("evaluate.py", *flags, *more))
        found = [json.loads(path.read_text()) for path in tmp_path.glob("generated/*/settings.json")]
        return out, {(line["network"], line["step"], line["checkpoint"]) for line in found}

    hashes = {name: file_hash(tmp_path / name) for name in (train.BEST, train.CHECKPOINT)}
    told, images = evaluated()
    assert "best.pt: the weights that scored best, of step 2" in told
    assert images == {("trained", 2, hashes["best.pt"])}
    told, images = evaluated(f"--eval_model_path={tmp_path / train.CHECKPOINT}")
    assert "scored best" not in told and ("trained", 4, hashes["ckpt.pt"]) in images
    conversion = ["--eval", *flags[1:], "--gen_images=0", "--gap_images=0"]
    check(script("SNN_conversion.py", *conversion))
    assert checkpoint.read(tmp_path / "converted_snn.pt")["source"] == hashes["ckpt.pt"]
    told, images = evaluated()
    assert "scored best" not in told and {network for network, *_ in images} == {"trained", "converted"}


def test_without_scores_the_newest_checkpoint_is_taken(tmp_path):
    assert RunFolder(tmp_path).best_or_last() == tmp_path / train.CHECKPOINT
    (tmp_path / train.BEST).touch()
    assert RunFolder(tmp_path).best_or_last() == tmp_path / train.BEST
