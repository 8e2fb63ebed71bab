"""What a stage keeps of its settings is what it ran with, and it can be run again from that."""

from tests.scripts import SAMPLING, check, four_blocks, script, train_flags


def test_defaults_that_the_checkpoint_overruled_are_not_shown(tmp_path):
    check(script("ANN_train.py", *train_flags(tmp_path, 2)))
    convert = ["--eval", f"--logdir={tmp_path}", "--gen_images=0", "--gap_images=0", *SAMPLING]
    check(script("SNN_conversion.py", *convert))
    tune = ["--fine_tune", f"--logdir={tmp_path}", "--ft_steps=0", "--ft_calibrate", "--ft_batch_size=2"]
    check(script("SNN_ft.py", *tune, "--gap_images=0", "--sample_step=0", before=four_blocks))
    sample = ["--sample_only", f"--logdir={tmp_path}", "--num_images=1", "--schedule=stream", "--burst=2", *SAMPLING]
    check(script("evaluate.py", *sample))
    wanted = {"--bit=2", "--ch=8", "--ch_mult=1", "--ch_mult=2", "--T=50"}
    for stage in ("convert", "finetune", "evaluate"):
        lines = (tmp_path / f"flagfile.{stage}.txt").read_text().splitlines()
        settings, by_hand = lines[: lines.index(lines[-1])], [line for line in lines if line.startswith("#")]
        assert wanted <= set(settings) and "--ch=128" not in lines and settings.count("--ch_mult=2") == 1
        assert f"#   --logdir={tmp_path}" in by_hand and not any("--bit" in line for line in by_hand)
    assert "--dataset_type=fashion_mnist_10k" in (tmp_path / "flagfile.finetune.txt").read_text().splitlines()
    assert {"--schedule=stream", "--burst=2", "--signed", "--if_neuron=bounded"} <= set(settings)
    out = check(script("evaluate.py", f"--flagfile={tmp_path}/flagfile.evaluate.txt"))
    assert ": 1 image\n" in out
