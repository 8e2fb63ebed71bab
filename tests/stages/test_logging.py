"""What a training sends to Weights & Biases, asked for by its flag."""

import json
import sys

from ann2snn.checkpoints import checkpoint
from ann2snn.run.lines import read_log
from tests.run.test_wandb import Fake
from tests.scripts import SAMPLING, check, script, train_flags


def test_a_training_sends_its_settings_and_what_it_logs(tmp_path):
    record = tmp_path / "calls.json"

    class Recorder(Fake):
        def finish(self) -> None:
            settings = next(arguments for name, arguments in self.calls if name == "init")
            logged = [(step, sorted(values), values.get("loss")) for step, values in self.logged]
            record.write_text(json.dumps({"init": settings, "logged": logged}))

    def before() -> None:
        sys.modules["wandb"] = Recorder()

    logdir = tmp_path / "run"
    flags = train_flags(logdir, 2, "--sample_step=2", "--sample_size=2", *SAMPLING)
    check(script("ANN_train.py", *flags, "--wandb=spikes", before=before))
    found = json.loads(record.read_text())
    assert found["init"]["project"] == "spikes" and found["init"]["name"] == "run"
    stored = checkpoint.read(logdir / "ckpt.pt")["config"]
    assert found["init"]["config"] == json.loads(json.dumps(stored))
    losses = [(step, loss) for step, _, loss in found["logged"] if loss is not None]
    assert losses == [(entry["step"], entry["loss"]) for entry in read_log(logdir / "log.jsonl")]
    assert [(step, names) for step, names, loss in found["logged"] if loss is None] == [
        (0, ["real_sample"]),
        (2, ["sample"]),
    ]
    record.unlink()
    check(script("ANN_train.py", *train_flags(tmp_path / "other", 1), before=before))
    assert not record.exists()
