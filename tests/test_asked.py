"""Flags that a command would pass over are refused where they are typed, and may stand in flagfiles."""

import copy

import pytest

from ann2snn.cli import asked, flags
from ann2snn.errors import UserError

PICTURES = ("--interpolate=1,2", "--start=a.png", "--start=a.png --inpaint=b.png", "--start=a.png --invert")
SCORING = ("--metrics=fd", "--kid", "--precision_recall", "--fad_encoder=e.pth", "--fad_stats=s.npz")


@pytest.fixture
def check(monkeypatch):
    """Lets `evaluate.py` check a command line."""
    before = set(flags.FLAGS)
    flags.define()
    untouched = copy.deepcopy(flags.FLAGS)
    for name in set(flags.FLAGS) - before:  # the next test may define them, too
        delattr(flags.FLAGS, name)

    def checked(*words):
        table = copy.deepcopy(untouched)
        for module in (asked, flags):
            monkeypatch.setattr(module, "FLAGS", table)
        table(["evaluate.py", *words])
        asked.check("evaluate")

    return checked


@pytest.mark.parametrize("flag", SCORING)
@pytest.mark.parametrize("action", [*PICTURES, "--sample_only", "--make_stats", "--search_sigma_rel=loss"])
def test_scores_are_not_asked_of_what_scores_nothing(check, tmp_path, action, flag):
    words = action.split()
    kept = flag.startswith("--fad_") and action == "--make_stats"  # of which it makes the FAD's
    if kept:
        check(*words, flag)
    else:
        with pytest.raises(UserError, match=f"^{flag}: not with {words[0].split('=')[0]}; drop one$"):
            check(*words, flag)
    (tmp_path / "flags.txt").write_text(f"{flag}\n--eval\n")
    check(f"--flagfile={tmp_path}/flags.txt", *words)


PASSED_OVER = {
    "--score=a --against=b": (
            "--num_images=3",
            "--class_label=3",
            "--guidance=2.5",
            "--sampler=ddim",
            "--fid_cache=s.npz",
            "--kid --pr_images=5",
        "--eval_model_path=n.pt", "--seed=3", "--images_dir=i",
    ),
    "--make_stats": ("--guidance=2.5", "--carry", "--eval_model_path=n.pt", "--pic_or_not"),
    "--score_data": ("--guidance=2.5", "--carry", "--eval_model_path=n.pt"),
    "--interpolate=1,2": ("--seed=3", "--num_images=3", "--images_dir=i", "--fid_cache=s.npz"),
    "--start=a.png --invert": ("--seed=3", "--pic_or_not"),
    "--search_sigma_rel=loss": ("--sampler=ddim", "--class_label=3", "--guidance=1.5", "--fid_cache=s.npz"),
}  # fmt: skip


@pytest.mark.parametrize(("action", "flag"), [(action, flag) for action, all_ in PASSED_OVER.items() for flag in all_])
def test_what_an_action_does_not_read_is_not_asked_of_it(check, tmp_path, action, flag):
    with pytest.raises(UserError, match=rf"^{flag.split()[-1]}: (not|only) with .*drop"):
        check(*action.split(), *flag.split())
    (tmp_path / "flags.txt").write_text("\n".join(["--eval", *flag.split()]))
    check(f"--flagfile={tmp_path}/flags.txt", *action.split())


def test_what_an_action_reads_may_be_asked_of_it(check):
    check("--search_sigma_rel=score", "--sampler=ddim", "--class_label=3", "--guidance=1", "--fid_cache=s.npz")
    check("--score_data", "--class_label=3", "--num_images=9", "--fid_cache=s.npz", "--kid", "--pr_images=9")
    check("--start=a.png", "--seed=3", "--class_label=3", "--guidance=1", "--carry", "--eval_model_path=n.pt")


@pytest.mark.parametrize("flag", [*SCORING, "--trajectory"])
def test_scores_are_asked_of_what_scores(check, flag):
    check("--eval", flag)
    if flag != "--trajectory":
        check("--score_data", flag)
        check("--score=a", "--against=b", flag)
        return
    check("--sample_only", flag)
    for action in ("--score_data", "--score=a", "--make_stats", "--interpolate=1,2", "--search_sigma_rel=score"):
        with pytest.raises(UserError, match="^--trajectory: not with "):
            check(action, flag)
