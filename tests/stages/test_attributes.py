"""CelebA's attributes as classes, from the lists that come with its pictures, which torchvision reads."""

import pytest
from torchvision.datasets import CelebA

from ann2snn.checkpoints import checkpoint
from ann2snn.data import attributes_of, load_dataset
from ann2snn.errors import UserError
from tests.data.test_datasets import picture
from tests.scripts import NETWORK, SAMPLING, check, script, train_flags

NAMES = ("5_o_Clock_Shadow", "Male", "Smiling")
#: Of each picture: its part (0 train, 2 test), and whether it has each of the attributes.
PICTURES = [(0, -1, -1, -1), (0, -1, -1, 1), (0, 1, 1, -1), (2, 1, 1, 1), (0, -1, 1, 1), (2, -1, 1, -1)]
COPIES = 9  # of each, since fine-tuning holds 32 images back


@pytest.fixture
def celeba(tmp_path, monkeypatch):
    """A folder with the files of CelebA, of a few pictures."""
    monkeypatch.setattr(CelebA, "_check_integrity", lambda _self: True)  # the hashes of the real ones
    folder, pictures = tmp_path / "data/celeba", PICTURES * COPIES
    files = [f"{i + 1:06}.jpg" for i in range(len(pictures))]
    for i, name in enumerate(files):
        picture(folder / "img_align_celeba" / name, 218, 178, seed=i)
    count, lines = len(pictures), [[file, *values[1:]] for file, values in zip(files, pictures, strict=True)]
    attributes = "".join(" ".join(f"{value!s:>2}" for value in line) + "\n" for line in lines)
    (folder / "list_attr_celeba.txt").write_text(f"{count}\n{' '.join(NAMES)} \n{attributes}")
    for name in ("bbox", "landmarks_align"):
        (folder / f"list_{name}_celeba.txt").write_text(f"{count}\nx y\n" + "".join(f"{file} 1 2\n" for file in files))
    (folder / "identity_CelebA.txt").write_text("".join(f"{file} 1\n" for file in files))
    parts = "".join(f"{file} {values[0]}\n" for file, values in zip(files, pictures, strict=True))
    (folder / "list_eval_partition.txt").write_text(parts)
    return tmp_path / "data"


def test_every_combination_is_a_class(celeba):
    train = load_dataset("celeba", celeba, 8, attributes=["Male", "Smiling"])
    names = ("not_Male,not_Smiling", "not_Male,Smiling", "Male,not_Smiling", "Male,Smiling")
    assert train.classes == names and attributes_of(names) == ("Male", "Smiling")
    assert train.labels.tolist() == [0, 1, 2, 3] * COPIES
    test = load_dataset("celeba", celeba, 8, train=False, attributes=["Smiling"])
    assert test.classes == ("not_Smiling", "Smiling") and test.labels.tolist() == [1, 0] * COPIES
    assert load_dataset("celeba", celeba, 8).labels is None


@pytest.mark.parametrize(
    ("attributes", "words"),
    [
        (["Beard"], "no attribute is called Beard; use some of 5_o_Clock_Shadow, Male, Smiling"),
        (["Male", "Male"], "name each attribute once"),
        (["5_o_Clock_Shadow", "Male"], "no training image is 5_o_Clock_Shadow,not_Male; choose other attributes"),
        (["Male"] * 9, "use 8 at most, whose combinations are the classes"),
    ],
)
def test_attributes_that_make_no_classes(celeba, attributes, words):
    with pytest.raises(UserError, match="--class_attributes") as caught:
        load_dataset("celeba", celeba, 8, attributes=attributes)
    assert words in str(caught.value)


def test_other_data_and_names_have_none():
    with pytest.raises(UserError, match="fashion_mnist_10k has no attributes"):
        load_dataset("fashion_mnist_10k", "", 8, attributes=["Male"])
    assert attributes_of(("cat", "dog")) == attributes_of(()) == ()


def test_a_network_is_trained_tuned_and_asked_for_an_attribute(celeba, tmp_path):
    run, data = tmp_path / "run", ["--dataset_type=celeba", f"--data_dir={celeba}"]
    check(script("ANN_train.py", *train_flags(run, 1, *data, "--class_cond", "--class_attributes=Smiling")))
    assert checkpoint.load(run / "ckpt.pt").net.class_names == ("not_Smiling", "Smiling")
    tuning = ["--fine_tune", "--ft_steps=1", "--ft_batch_size=2", "--gap_images=0", "--gen_images=0", "--sample_step=0"]
    later = [f"--logdir={run}", *NETWORK[1:], *SAMPLING, data[1]]  # the checkpoint knows the data set and attributes
    check(script("SNN_ft.py", *later, *tuning))
    assert "--class_attributes=Smiling\n" in (run / "flagfile.finetune.txt").read_text()
    check(script("evaluate.py", *later, "--sample_only", "--num_images=2", "--class_label=Smiling"))
    other = script("SNN_ft.py", *later, *tuning, "--class_attributes=Male")
    assert other.returncode == 2 and "class 0 is not_Male in celeba, not_Smiling for the network" in other.stderr
    alone = script("ANN_train.py", *train_flags(tmp_path / "other", 1, *data, "--class_attributes=Smiling"))
    assert alone.returncode == 2 and "--class_attributes=Smiling: only with --class_cond" in alone.stderr
