"""Power-function averages are of all that a network has, batch norm's running statistics too."""

import torch

from ann2snn.config import DiffusionConfig, TrainConfig, UNetConfig
from ann2snn.diffusion.power_ema import gamma_of
from ann2snn.distributed.world import ALONE
from ann2snn.training.trainer import Trainer

STEPS, WIDTHS = 6, (0.05, 0.2)


def trainer(**shape) -> Trainer:
    network = UNetConfig(1, 8, ch=8, ch_mult=(1,), num_res_blocks=1, bits=2, diffusion_steps=50, **shape)
    train = TrainConfig(batch_size=4, total_steps=STEPS, power_ema=WIDTHS)
    return Trainer(network, DiffusionConfig(diffusion_steps=50), train, ALONE)


def test_averaged_running_statistics_are_the_weighted_sum_over_all_steps():
    run = trainer(norm="batch")
    images = torch.randint(256, (STEPS, 4, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    seen = []
    for batch in images:
        run.train_step(batch)
        seen.append({name: value.double().clone() for name, value in run.net.named_buffers()})
    statistics = [name for name in seen[0] if "running" in name]
    assert any(name.endswith("running_mean") for name in statistics)
    assert any(name.endswith("running_var") for name in statistics)
    for sigma, net in run.power.nets.items():
        shares = ((torch.arange(STEPS + 1, dtype=torch.float64) / STEPS) ** (gamma_of(sigma) + 1)).diff()
        averaged = dict(net.named_buffers())
        for name in statistics:
            wanted = sum(share * step[name] for share, step in zip(shares, seen, strict=True))
            torch.testing.assert_close(averaged[name].double(), wanted, rtol=1e-5, atol=1e-7)
            assert not torch.equal(seen[0][name], seen[-1][name])


def test_a_snapshot_that_cannot_be_written_is_warned_of_and_missing(tmp_path, capsys):
    (tmp_path / "power_ema").write_text("in the folder's place")
    run = trainer(norm_groups=4)
    run.power.write(tmp_path / "power_ema", run.about())
    assert capsys.readouterr().err.count("is not kept: ") == len(WIDTHS) and not run.power.snapshots
    run.power.write(tmp_path / "other", run.about())
    assert len(run.power.snapshots) == len(WIDTHS) == len(list((tmp_path / "other").iterdir()))
