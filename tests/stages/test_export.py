"""SNN_conversion.py --export: a folder that loads bitwise, and a card that says what was measured, and no more."""

import torch

import ann2snn
from tests.helpers import assert_equal
from tests.scripts import SAMPLING, check, script
from tests.stages.test_bad_input import refused


def test_the_exported_folder_is_the_network_and_its_card_has_no_empty_field(finished_run, tmp_path):
    logdir, _ = finished_run
    flags = ["--eval", f"--eval_model_path={logdir}/ckpt.pt", f"--logdir={tmp_path}/run", *SAMPLING, "--gen_images=0"]
    check(script("SNN_conversion.py", *flags, "--gap_images=1", f"--export={tmp_path}/net"))
    snn, again = ann2snn.load(tmp_path / "run" / "converted_snn.pt"), ann2snn.load(tmp_path / "net")
    assert again.spiking == snn.spiking and again.config == snn.config
    for name, value in snn.state_dict().items():
        assert_equal(again.state_dict()[name], value)
    x, t = torch.randn(2, 1, 8, 8), torch.tensor([3, 40])
    with torch.no_grad():
        assert_equal(again(x, t), snn(x, t))
    page = (tmp_path / "net" / "README.md").read_text()
    assert "## Gap" in page and "| layer_sync | 0" in page and "## Cost" in page and "## Scores" not in page
    cells = [cell.strip() for line in page.splitlines() if line.startswith("|") for cell in line.strip("|").split("|")]
    assert all(cell not in ("", "–", "None", "nan") for cell in cells)
    before = page
    refused(script("SNN_conversion.py", *flags, f"--export={tmp_path}/net"), "nothing is overwritten")
    assert (tmp_path / "net" / "README.md").read_text() == before
    (tmp_path / "file").touch()
    new = [*flags, f"--logdir={tmp_path}/new"]
    for place in ("new", "new/../new", "file", "file/net"):  # before anything is computed
        refused(script("SNN_conversion.py", *new, f"--export={tmp_path}/{place}"), place.split("/")[0])
        assert not (tmp_path / "new" / "converted_snn.pt").exists()
    refused(script("SNN_conversion.py", *new, "--export="), "--export=: is empty")
    check(script("SNN_conversion.py", *flags, "--gap_images=0", f"--export={tmp_path}/bare"))
    assert "## Gap" not in (tmp_path / "bare" / "README.md").read_text()
