"""The one table of command-line flags. Every script accepts all of it, so that one flagfile can drive all stages.

Names and defaults of the first group are those of the published conversion code; its flagfiles run unchanged.
"""

from __future__ import annotations

from collections.abc import Callable

from .. import config
from .parsing import (
    FLAGS,
    DEFINE_alias,
    DEFINE_bool,
    DEFINE_enum,
    DEFINE_float,
    DEFINE_integer,
    DEFINE_list,
    DEFINE_multi_integer,
    DEFINE_string,
    define_size,
)
from .table_evaluate import define_drawing, define_scores


def define() -> None:
    """Register the whole table; call once, from a script."""
    for title, group in GROUPS.items():
        before = set(FLAGS)
        group()
        HELP[title] = sorted(set(FLAGS) - before)


#: Title of a group → its flags, in the order `--help` shows them; filled by `define`.
HELP: dict[str, list[str]] = {}


def _define_actions() -> None:
    DEFINE_bool("train", False, "ANN_train, SNN_train: train (or continue training) a network")
    DEFINE_bool("eval", False, "all but SNN_ft: run the stage's evaluation or conversion")
    DEFINE_bool("fine_tune", False, "SNN_ft: fine-tune the converted network")
    DEFINE_bool(
        "make_stats",
        False,
        "evaluate: write the statistics of the --dataset_type images (--num_images of them at most) to --fid_cache",
    )
    DEFINE_bool("score_data", False, "evaluate: score the data set's test images: the best score to expect")


def _define_network() -> None:
    DEFINE_enum(
        "arch",
        "unet",
        config.ARCHS,
        "unet, and attention (of DDPM) where --bit is given, convert to spikes; sddpm, fsddim: SNN_train",
    )
    DEFINE_integer("ch", 128, "channels of the first level")
    DEFINE_multi_integer("ch_mult", [1, 2, 2, 2], "channel multiplier of each resolution level")
    DEFINE_multi_integer("attn", [1], "levels with attention, 0 the first; --arch=attention only")
    DEFINE_integer("num_res_blocks", 2, "residual blocks per level")
    DEFINE_float("dropout", 0.1, "dropout inside residual blocks while training")
    DEFINE_float("bit", 8, "activation bits b, 2 to 8; the SNN runs 2^b − 1 steps; 32 trains a plain ReLU network")
    DEFINE_integer("weight_bit", 32, "weight bits, 2 to 8, or 32 for full precision")
    DEFINE_enum("weight_quant", "apot", ["apot", "uniform"], "weight levels when --weight_bit is below 32")
    DEFINE_enum(
        "norm",
        None,
        ["group", "batch", "plain", "scaled"],
        "unet: group (default), or batch, which is an affine map once trained; fsddim: batch norm plain, or times α",
    )
    DEFINE_integer("norm_bins", 1, "--norm=batch: parts of diffusion time with statistics of their own; unet only")
    DEFINE_integer("norm_groups", 32, "groups of every GroupNorm; keep at least 2 channels in a group")
    DEFINE_integer("block_size", 1, "side of the squares of pixels that become channels; --arch=attention only")
    DEFINE_bool(
        "spike_driven",
        False,
        "norm and activation before shortcut and resampling convolutions too: all but the head read spikes in the SNN",
    )


def _define_direct() -> None:
    DEFINE_integer("timestep", None, "spike steps of a network call; default: sddpm 4, fsddim 8")
    DEFINE_float(
        "threshold", None, "of all neurons: in training (default 1), or when sampling, which is threshold guidance"
    )
    DEFINE_enum(
        "surrogate", None, config.SURROGATE_NAMES, "spike's derivative; default: atan (sddpm), triangle (fsddim)"
    )
    DEFINE_bool("tsm", False, "sddpm: a learned factor per convolution and time step, from the start of training")
    DEFINE_list(
        "corrections", None, f"sddpm: parts of the published network to correct: {','.join(config.CORRECTION_NAMES)}"
    )
    DEFINE_float("decay", None, "fsddim: share of the membrane potential left after a time step; default 0.8")
    DEFINE_bool("soft_reset", None, "fsddim: a spike subtracts the threshold; default: it resets to zero")
    DEFINE_bool("detach_reset", None, "fsddim: no gradient through the reset; default on")
    DEFINE_bool("recompute", False, "training: compute a block's activations again instead of keeping them")


def _define_diffusion() -> None:
    DEFINE_integer("T", 1000, "diffusion steps")
    DEFINE_float("beta_1", 1e-4, "first beta")
    DEFINE_float("beta_T", 0.02, "last beta")
    DEFINE_enum("mean_type", "epsilon", config.MEAN_TYPES, "what the network predicts")
    DEFINE_enum(
        "var_type", "fixedlarge", config.VAR_TYPES, "variance of a step of ddpm; learned_range: the network predicts it"
    )
    DEFINE_enum("beta_schedule", "linear", config.BETA_SCHEDULES, "how the betas grow from beta_1 to beta_T; vp only")
    DEFINE_bool("zero_terminal_snr", False, "rescale the schedule so that its last step is pure noise; not for epsilon")
    DEFINE_enum(
        "process", "vp", list(config.PROCESSES), "vp is DDPM's; cld: critically damped Langevin; blur: blur diffusion"
    )
    DEFINE_bool(
        "linear_first", None, "cld, blur: the network learns what the best linear prediction leaves; default: cld"
    )
    DEFINE_enum("cld_factor", "R", ["R", "L"], "noise that a cld network predicts: K = R (gDDIM) or L (Cholesky)")


def _define_data() -> None:
    DEFINE_string(
        "dataset_type", "cifar10", "fashion_mnist_10k (shipped), cifar10, mnist, fashion_mnist, celeba, folder"
    )
    DEFINE_string("data_dir", "./data", "where the data set is, or is downloaded to; for folder, the images")
    DEFINE_list(
        "class_attributes",
        [],
        "celeba: attributes, as Male,Smiling, whose combinations are its classes (--class_cond, --class_label)",
    )
    DEFINE_integer("channels", None, "1 (grey) or 3 (colour) for a folder of images; default 3")
    define_size("img_size", "32", "height and width, or HEIGHT,WIDTH; multiples of 2^(levels − 1)")
    DEFINE_string(
        "autoencoder",
        None,
        "diffuse this autoencoder's latents: a file of `ann2snn autoencoder`, or a folder of diffusers' AutoencoderKL",
    )
    DEFINE_bool("flip", None, "mirror training images at random; default: what suits the data set")
    DEFINE_integer("num_workers", 4, "processes that decode images, where a data set does not fit in memory")
    DEFINE_enum(
        "resident",
        "auto",
        config.RESIDENT,
        "keep training images on the device; auto: on a GPU, where they take little of its memory",
    )


def _define_training() -> None:
    DEFINE_float("lr", 2e-4, "learning rate")
    decay = "after the warm-up: constant; cosine to 0 at --total_steps; or constant, then linear to 0 in the last tenth"
    DEFINE_enum("lr_decay", "none", ["none", "cosine", "cooldown"], decay)
    DEFINE_enum(
        "loss_type",
        "mse",
        config.LOSS_TYPES,
        "squared error; a bound in bits per dimension; scl: fsddim's",
    )
    DEFINE_enum(
        "loss_weight",
        "none",
        config.LOSS_WEIGHTS,
        "weight of each diffusion time in mse: none: equal; min_snr, p2: by its signal-to-noise ratio",
    )
    DEFINE_float("min_snr_gamma", 5.0, "signal-to-noise ratio above which --loss_weight=min_snr lowers a time's weight")
    for term, default in (("image", 1.0), ("spike", 0.0), ("reconstruction", 1.0)):
        DEFINE_float(f"{term}_loss_weight", default, f"weight of the {term} term of --loss_type=scl")
    DEFINE_float("grad_clip", 1.0, "largest gradient norm")
    DEFINE_integer("total_steps", 800000, "training steps; 0 with --init_from: only quantize")
    DEFINE_string(
        "init_from",
        None,
        "ANN_train: the network to begin with (as --eval_model_path names one), quantized to --bit on sampler states",
    )
    DEFINE_integer("warmup", 5000, "steps over which the learning rate rises; 0 for none")
    DEFINE_integer(
        "batch_size", 128, "images per step over all processes; on a GPU also the batch in which a process samples"
    )
    DEFINE_integer(
        "accumulate", 1, "training, fine-tuning: parts in which a process computes its share of a batch, to save memory"
    )
    DEFINE_float("ema_decay", 0.9999, "decay of the averaged weights")
    DEFINE_bool("ema_warmup", False, "decay at most (1 + n) / (10 + n) after n steps")
    DEFINE_list(
        "power_ema",
        [],
        "widths, such as 0.05,0.1, of power-function averages of the weights to keep, for --sigma_rel after training",
    )
    DEFINE_integer("power_ema_step", None, "steps between their snapshots; default: a 32nd of --total_steps")
    DEFINE_string(
        "act_init", "calibrate", "first clip value of the activations: calibrate (from one batch) or a number"
    )
    DEFINE_bool(
        "class_cond", False, "condition the network on each image's class in the data set; unet and attention only"
    )
    DEFINE_float(
        "class_dropout",
        config.CLASS_DROPOUT,
        "--class_cond: share of the training images whose class the network does not see",
    )
    DEFINE_integer("sample_step", 1000, "steps between sample grids; 0 for none")
    DEFINE_integer("save_step", None, "steps between checkpoints (training 5000, fine-tuning 2000); 0: only the last")
    DEFINE_integer("eval_step", 0, "steps between scores while training; 0 for none")
    DEFINE_integer("log_step", 10, "steps between log entries")
    DEFINE_bool("resume", True, "continue from the checkpoint in --logdir if there is one")
    DEFINE_list(
        "resume_with", [], "flags that may differ from those of the run that is continued, such as lr,grad_clip; logged"
    )


def _define_spiking() -> None:
    DEFINE_enum("schedule", None, config.SCHEDULES, "how the SNN runs; default: layer_sync, fine-tuning: stream")
    DEFINE_bool("signed", None, "signed (ternary) spikes; default on")
    DEFINE_enum(
        "stream_norm",
        None,
        [*config.STREAM_NORMS, config.FROZEN],  # the last is refused, and told what to use instead
        "what norms read under stream: running means (default), or each step alone (per_step, as published)",
    )
    DEFINE_enum(
        "if_neuron", None, config.IF_NEURONS, "neuron model: bounded (default), or reference, the published one"
    )
    DEFINE_integer("burst", None, "most spikes that a neuron sends in the window's last step; default 1; stream only")
    DEFINE_string(
        "settle_steps", None, f"steps after the input stops: a number or {config.AUTO}; default 0; stream only"
    )


def _define_fine_tuning() -> None:
    DEFINE_integer("ft_steps", 10000, "fine-tuning steps per block")
    DEFINE_integer("ft_batch_size", 64, "images per fine-tuning step")
    DEFINE_enum(
        "ft_method",
        "proxy",
        config.FT_METHODS,
        "gradient through: the ANN's block (proxy), the spikes (bptt); tsm: SDM",
    )
    DEFINE_alias("method", "ft_method")
    DEFINE_list("ft_learn", None, "any of weights,thresholds,charges; default: weights for proxy, all three for bptt")
    DEFINE_enum(
        "ft_granularity",
        "channel",
        ["layer", "channel"],
        "one learned threshold and initial charge per layer or channel",
    )
    DEFINE_float("ft_neuron_lr", 1e-3, "learning rate of thresholds and charges")
    DEFINE_bool("ft_calibrate", False, "first set thresholds, charges and output biases from data")
    DEFINE_integer("ft_cache", 0, "batches whose block inputs are kept and reused; 0: new batches at every step")
    DEFINE_integer("ft_network_steps", 0, "steps of a last pass over all blocks at once; 0: none")
    DEFINE_enum("ft_inputs", "data", config.FT_INPUTS, "noised real images, or states that the sampler visits")
    DEFINE_string("ft_name", "", "ending of the result folder's name, so that several runs fit in one --logdir")


def _define_sampling() -> None:
    DEFINE_enum(
        "sampler",
        "ddpm",
        config.SAMPLER_NAMES,
        "ddpm visits every step of --T; cld, blur: gddim or euler",
    )
    DEFINE_integer("sampler_steps", 50, "network calls per image of every sampler but ddpm")
    DEFINE_float("eta", 0.0, "noise of ddim, λ of gddim and euler: 0 (deterministic) to 1")
    DEFINE_enum(
        "ddim_epsilon",
        "recomputed",
        config.DDIM_EPSILONS,
        "ddim: noise after the predicted image was clipped: recomputed to match it, or the network's own, as in SDDPM",
    )
    DEFINE_bool(
        "carry", False, "a converted network keeps its neurons' state from call to call: only changes cost spikes"
    )
    DEFINE_string("carry_steps", config.AUTO, "time steps of a carried call under stream; auto: until no neuron fires")
    DEFINE_enum(
        "skip_type",
        None,
        config.SKIPS,
        "spacing of times; default: logsnr for the solvers (dpm_solver to unipc), else uniform",
    )
    DEFINE_integer(
        "sampler_order",
        2,
        "order of gddim (0 to 3) and the solvers dpm_solver, dpmpp, dpmpp_singlestep, dpmpp_sde, unipc (1 to 3)",
    )
    DEFINE_bool("lower_order_final", False, "pndm: its last three steps combine 3, 2 and 1 predictions instead of 4")
    DEFINE_bool("denoise", True, "ddim, gddim, euler: end with a call that removes the last noise")
    DEFINE_enum("corrector", "none", config.CORRECTORS, "gddim: correct each step (pec), and predict again (pece)")
    DEFINE_float("grid_power", 2.0, "gddim, euler: times are evenly spaced in t^(1/grid_power)")
    DEFINE_float(
        "guidance",
        0.0,
        "of a class-conditional network: w in (1 + w) * conditional - w * unconditional; 0: the conditional one alone",
    )
    DEFINE_string(
        "class_label",
        None,
        "class of all generated images, by number or name, or none; default: each in turn; also of the real images of "
        "--make_stats and --score_data",
    )
    DEFINE_integer("analytic_images", 256, "analytic_dpm: training images its statistics are gathered on")
    DEFINE_bool("clip_x0", True, "clip the predicted image at every sampling step; the published code does not")
    DEFINE_integer("sample_size", 64, "images in a training sample grid")
    DEFINE_integer("gen_images", 64, "images in the grid SNN_conversion writes")
    DEFINE_integer("num_images", 50000, "images to generate and score")
    DEFINE_bool("sample_only", False, "evaluate: generate and save, do not score")
    DEFINE_string("images_dir", None, "evaluate: folder of the generated images; default: inside --logdir")
    DEFINE_bool("pic_or_not", False, "evaluate: also write a grid of the first images")
    DEFINE_bool("trajectory", False, "evaluate: also draw and animate how the first images arise from noise")
    DEFINE_integer("trajectory_images", 8, "images of --trajectory, 1 to 64")
    DEFINE_enum("trajectory_format", "webp", ["webp", "gif"], "animation of --trajectory")


def _define_run() -> None:
    DEFINE_string("logdir", "./logs/DDPM_CIFAR10_EPS", "folder of the run, shared by all stages")
    DEFINE_integer("seed", 0, "everything random follows from it")
    DEFINE_bool("parallel", False, "one process per visible GPU; processes of torchrun join by themselves")
    DEFINE_integer("nproc", 0, "start that many processes here, on GPUs or on the CPU; 0: see --parallel")
    DEFINE_enum("device", "auto", ["auto", "cpu", "cuda"], "auto takes a GPU if there is one")
    DEFINE_string("wandb", None, "training: log to this project at Weights & Biases too, where it is installed")
    DEFINE_bool("amp", False, "train and sample in bfloat16 where the device computes in it")
    DEFINE_bool("tf32", False, "train and sample with TF32 products of float32 where a GPU has them; scores never do")
    DEFINE_bool("compile", False, "torch.compile for sampling and training; the first calls then take minutes")
    DEFINE_integer(
        "spike_chunk", 0, "time steps of the SNN at once under stream; 0: all, on a CPU as many as its cache holds"
    )
    DEFINE_integer("num_threads", 0, "CPU threads; 0 leaves the choice to torch")


GROUPS: dict[str, Callable[[], None]] = {
    "What to do": _define_actions,
    "Run": _define_run,
    "Data": _define_data,
    "Network": _define_network,
    "Directly trained spiking network": _define_direct,
    "Diffusion": _define_diffusion,
    "Training": _define_training,
    "Spiking network": _define_spiking,
    "Fine-tuning": _define_fine_tuning,
    "Sampling": _define_sampling,
    "Drawing (evaluate)": define_drawing,
    "Scores": define_scores,
}
