"""Files as other programs write them, made of networks with random weights."""

import json
import re

import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from tests.foreign import diffusers


def randomize(net, seed=0):
    """Random weights that keep every layer busy; `net`."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in net.named_parameters():
        spread = 0.3 if value.ndim == 1 else value[0].numel() ** -0.5
        is_gain = value.ndim == 1 and name.endswith("weight")
        nn.init.normal_(value.data, mean=1.0 if is_gain else 0.0, std=spread, generator=generator)
    return net.eval()


def ddpm_torch_file(path, net, parallel=False, averaged=True):
    """A checkpoint of ddpm-torch's trainer, with the averaged weights of `net`, and raw ones half as large."""
    state = net.state_dict()
    prefix = "module." if parallel else ""
    payload = {
        "model": {prefix + name: value / 2 for name, value in state.items()},
        "optimizer": {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 2e-4, "params": [0]}]},
        "scheduler": {"last_epoch": 3},
        "epoch": 3,
        "loss": 0.03,
    }
    if averaged:
        payload["ema"] = {"decay": 0.9999, "shadow": dict(state), "num_updates": 3}
    torch.save(payload, path)


class PytorchDDPM:
    """The network of pytorch-ddpm, as formulas over its names; two groups in every norm instead of 32."""

    def __init__(self, ch=8, ch_mult=(1, 2), attn=(1,), blocks=1, steps=1000, groups=2, seed=0):
        self.ch, self.mults, self.attn, self.blocks, self.groups = ch, ch_mult, attn, blocks, groups
        self.state, self.generator = {}, torch.Generator().manual_seed(seed)
        frequency = torch.exp(-(torch.arange(0, ch, step=2) / ch * torch.log(torch.tensor(10000.0))))
        angle = torch.arange(steps).float()[:, None] * frequency[None]
        table = torch.stack([angle.sin(), angle.cos()], dim=-1).view(steps, ch)
        self.state["time_embedding.timembedding.0.weight"] = table
        self._layer("time_embedding.timembedding.1", 4 * ch, ch)
        self._layer("time_embedding.timembedding.3", 4 * ch, 4 * ch)
        self._layer("head", ch, 3, 3, 3)
        self._way()
        self._layer("tail.0", ch)
        self._layer("tail.2", 3, ch, 3, 3)

    def _way(self):
        width, skips, index = self.ch, [self.ch], 0
        for level, mult in enumerate(self.mults):
            for _ in range(self.blocks):
                self._block(f"downblocks.{index}", width, width := self.ch * mult, level in self.attn)
                skips.append(width)
                index += 1
            if level < len(self.mults) - 1:
                self._layer(f"downblocks.{index}.main", width, width, 3, 3)
                skips.append(width)
                index += 1
        self._block("middleblocks.0", width, width, True)
        self._block("middleblocks.1", width, width, False)
        index = 0
        for level in reversed(range(len(self.mults))):
            for _ in range(self.blocks + 1):
                self._block(
                    f"upblocks.{index}", width + skips.pop(), width := self.ch * self.mults[level], level in self.attn
                )
                index += 1
            if level:
                self._layer(f"upblocks.{index}.main", width, width, 3, 3)
                index += 1

    def _layer(self, name, *shape):
        norm = len(shape) == 1
        weight = torch.randn(shape, generator=self.generator)
        self.state[f"{name}.weight"] = 1 + 0.3 * weight if norm else weight * weight[0].numel() ** -0.5
        self.state[f"{name}.bias"] = 0.3 * torch.randn(shape[0], generator=self.generator)

    def _block(self, name, c_in, c_out, attention):
        self._layer(f"{name}.block1.0", c_in)
        self._layer(f"{name}.block1.2", c_out, c_in, 3, 3)
        self._layer(f"{name}.temb_proj.1", c_out, 4 * self.ch)
        self._layer(f"{name}.block2.0", c_out)
        self._layer(f"{name}.block2.3", c_out, c_out, 3, 3)
        if c_in != c_out:
            self._layer(f"{name}.shortcut", c_out, c_in, 1, 1)
        if attention:
            self._layer(f"{name}.attn.group_norm", c_out)
            for projection in ("proj_q", "proj_k", "proj_v", "proj"):
                self._layer(f"{name}.attn.{projection}", c_out, c_out, 1, 1)

    def __call__(self, x, t):
        """x float64 [N, 3, H, W], whole t [N]."""
        state = {name: value.double() for name, value in self.state.items()}

        def conv(name, h, **how):
            return F.conv2d(h, state[f"{name}.weight"], state[f"{name}.bias"], **how)

        def linear(name, h):
            return F.linear(h, state[f"{name}.weight"], state[f"{name}.bias"])

        def norm(name, h):
            return F.group_norm(h, self.groups, state[f"{name}.weight"], state[f"{name}.bias"])

        def swish(h):
            return h * h.sigmoid()

        def block(name, h, temb):
            inner = conv(f"{name}.block1.2", swish(norm(f"{name}.block1.0", h)), padding=1)
            inner = inner + linear(f"{name}.temb_proj.1", swish(temb))[:, :, None, None]
            inner = conv(f"{name}.block2.3", swish(norm(f"{name}.block2.0", inner)), padding=1)
            h = inner + (conv(f"{name}.shortcut", h) if f"{name}.shortcut.weight" in state else h)
            return attend(f"{name}.attn", h) if f"{name}.attn.proj.weight" in state else h

        def attend(name, h):
            n, c, height, width = h.shape
            normed = norm(f"{name}.group_norm", h)
            q, k, v = (conv(f"{name}.proj_{factor}", normed).flatten(2) for factor in "qkv")
            weights = (q.transpose(1, 2) @ k * c**-0.5).softmax(dim=-1)
            return h + conv(f"{name}.proj", (v @ weights.transpose(1, 2)).view(n, c, height, width))

        temb = state["time_embedding.timembedding.0.weight"][t]
        temb = linear("time_embedding.timembedding.3", swish(linear("time_embedding.timembedding.1", temb)))
        skips = [h := conv("head", x, padding=1)]
        for index in self._indices("down"):
            name = f"downblocks.{index}"
            resamples = f"{name}.main.weight" in state
            h = conv(f"{name}.main", h, stride=2, padding=1) if resamples else block(name, h, temb)
            skips.append(h)
        h = block("middleblocks.1", block("middleblocks.0", h, temb), temb)
        for index in self._indices("up"):
            name = f"upblocks.{index}"
            if f"{name}.main.weight" in state:
                h = conv(f"{name}.main", F.interpolate(h, scale_factor=2), padding=1)
            else:
                h = block(name, torch.cat([h, skips.pop()], dim=1), temb)
        return conv("tail.2", swish(norm("tail.0", h)), padding=1)

    def _indices(self, way):
        return sorted({int(m[1]) for name in self.state if (m := re.match(rf"{way}blocks\.(\d+)\.", name))})

    def write(self, path, size=8, **extra):
        raw = {name: value / 2 if "timembedding.0" not in name else value for name, value in self.state.items()}
        x_T = torch.zeros(1, 3, size, size)
        torch.save(
            {"net_model": raw, "ema_model": self.state, "sched": {}, "optim": {}, "step": 5, "x_T": x_T} | extra, path
        )


PLAIN_UNET = {
    "sample_size": 8, "block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": None,
}  # fmt: skip


def diffusers_folder(path, scheduler=None, seed=0, **options):
    """diffusers' own network of random weights, written to `path`; with a scheduler, as a pipeline."""
    net = randomize(diffusers().UNet2DModel(**PLAIN_UNET | options), seed)
    net.save_pretrained(path / "unet" if scheduler else path)
    if scheduler:
        scheduler.save_pretrained(path / "scheduler")
        index = {"_class_name": "DDPMPipeline", "unet": ["diffusers", "UNet2DModel"]}
        (path / "model_index.json").write_text(json.dumps(index))
    return net.double()


def rename_in_folder(path, change):
    """Rewrite the tensors of a folder; change: name → new name."""
    from safetensors.torch import load_file

    file = path / "diffusion_pytorch_model.safetensors"
    save_file({change(name): value for name, value in load_file(file).items()}, file)
