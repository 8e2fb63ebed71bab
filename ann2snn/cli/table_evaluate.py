"""The part of the table for pictures that `evaluate.py` draws, and for scores and the network they are of."""

from __future__ import annotations

from .. import config
from .parsing import DEFINE_bool, DEFINE_enum, DEFINE_float, DEFINE_integer, DEFINE_list, DEFINE_string


def define_drawing() -> None:
    DEFINE_list("interpolate", None, "two seeds, such as 1,2: a strip of images from one to the other")
    DEFINE_string("start", None, "an image of the size that the network makes: draw variations of it (SDEdit)")
    DEFINE_float("strength", 0.5, "share of the diffusion steps that --start is noised over, above 0 to 1")
    DEFINE_string(
        "inpaint",
        None,
        "a mask: what is white is drawn anew in --start, or else in the first training images (RePaint)",
    )
    DEFINE_integer("resamples", 10, "times that --inpaint repeats each step (RePaint's resampling)")
    DEFINE_bool(
        "invert",
        False,
        "find the noise of --start, or else of the first training images; prints the error of the way back, with "
        "--autoencoder also that of its parts",
    )
    DEFINE_integer("invert_iterations", 1, "fixed-point iterations of each step of --invert")
    DEFINE_integer("drawn_images", 8, "images of a picture, 1 to 64")


def define_scores() -> None:
    DEFINE_string(
        "eval_model_path",
        None,
        "the network to evaluate, convert or fine-tune: a file, a folder or a shipped one's name; default: that of "
        "--logdir",
    )
    DEFINE_float(
        "sigma_rel",
        None,
        "evaluate, convert: use weights averaged with this relative width, 0.005 to 0.28, made from --power_ema's "
        "snapshots",
    )
    DEFINE_enum(
        "search_sigma_rel",
        None,
        config.SEARCHES,
        "evaluate: find the --sigma_rel of the lowest loss on --num_images test images (loss), or of the lowest "
        "Fréchet distance of as many generated ones (score)",
    )
    DEFINE_string(
        "extractor",
        "inception",
        "features: inception gives FID and IS; lite0 is offline; torchvision:NAME or timm:NAME, any classifier of "
        "these packages, with --extractor_weights; none: FAD alone",
    )
    DEFINE_string("extractor_weights", None, "weights of --extractor=torchvision:NAME or timm:NAME, a file")
    DEFINE_string("inception_weights", None, "file pt_inception-2015-12-05-6726825d.pth, if not in torch's cache")
    DEFINE_integer("lite0_size", 224, "side in pixels that images are resized to for lite0; part of its name")
    DEFINE_string("fid_cache", "./stats/cifar10.train.npz", "statistics of the real images")
    DEFINE_list(
        "metrics",
        None,
        "evaluate: scores by name, such as fd,is,kid,prdc,fad; default: fd (which is FID with the Inception), is where "
        "the extractor has logits, and those of other flags; with --score: all that can be computed",
    )
    DEFINE_bool(
        "precision_recall",
        False,
        "evaluate: as prdc in --metrics: precision, recall, density, coverage",
    )
    DEFINE_bool("kid", False, "evaluate: as kid in --metrics: the kernel distance KID, with its deviation")
    DEFINE_string("score", None, "evaluate: score these images, a folder or an npz with arr_0, with those of --against")
    DEFINE_string("against", None, "what --score is compared with: a folder or an npz with arr_0")
    DEFINE_integer("pr_k", 3, "an image's ball reaches to its k-th nearest neighbour; the literature has k = 3")
    DEFINE_integer("pr_images", None, "training images that kid and prdc compare with; default: --num_images of them")
    DEFINE_string("fad_encoder", None, "evaluate: autoencoder (.pth) for the FAD beside the other scores")
    DEFINE_string("fad_stats", None, "statistics of the real images for the FAD; --make_stats writes them")
    DEFINE_enum("fad_mode", "eval", ["published", "eval"], "FAD with statistics of each batch, or running ones")
    DEFINE_bool("fid_use_torch", False, "accepted for compatibility; statistics are always float64")
    DEFINE_integer("gap_images", 8, "images the gap table is measured on")
    DEFINE_string("export", None, "SNN_conversion: a new folder for the network and a card of what was measured")
    DEFINE_string("export_nir", None, "SNN_conversion: a new file for the network at --nir_time as a graph (NIR)")
    DEFINE_float("nir_time", None, "diffusion time of --export_nir, 0 to below --T")
    DEFINE_bool("fold_norms", False, "--export_nir: batch norms become weights of the convolutions in front of them")
    DEFINE_string("export_onnx", None, "SNN_conversion: a new ONNX file of the layer_sync network, with Q/DQ nodes")
    DEFINE_string("export_program", None, "SNN_conversion: a new file of the layer_sync network, for torch.export.load")
