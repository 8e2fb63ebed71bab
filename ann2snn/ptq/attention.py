"""Attention: which submodules answer q, k and v, and an attention of torch's whose projections are modules."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..config import require
from ..nets.attention_unet import AttentionBlock

#: Class → names of its submodules; see `register_attention`.
_KNOWN: dict[type[nn.Module], tuple[tuple[str, ...], ...]] = {}
#: Of diffusers' attention classes, and of others that follow its names. A norm answers last, where there is one.
_DIFFUSERS = (
    *(("to_q", "norm_q"), ("to_k", "norm_k"), ("to_v",)),
    *(("add_q_proj", "norm_added_q"), ("add_k_proj", "norm_added_k"), ("add_v_proj",)),
)


def register_attention(cls: type[nn.Module], *names: str | tuple[str, ...]) -> None:
    """Let `quantize` quantize what submodules `names` of every `cls` answer: the factors of an attention product.

    `ann2snn.register_attention(MyAttention, "query", "key", "value")`. Of a tuple of names, the last that is called
    counts; names that a module does not have are passed over. What enters the output projection needs no mention: it
    is the input of a layer. Raises UserError for what is no class of modules, and for what are no names.
    """
    known = isinstance(cls, type) and issubclass(cls, nn.Module)
    require(known, f"register_attention: {cls!r} is no class of modules")
    for name in names:
        parts = name if isinstance(name, tuple) and name else (name,)
        texts = all(isinstance(part, str) and part for part in parts)
        require(texts, f"register_attention: {name!r} is no name of a submodule, nor a tuple of them")
    require(bool(names), "register_attention: give the names of the submodules that answer q, k and v")
    _KNOWN[cls] = tuple((name,) if isinstance(name, str) else tuple(name) for name in names)


def attended(module: nn.Module) -> list[list[str]]:
    """For every factor of `module`'s attention product the submodules that may answer it; empty if it is none."""
    for cls in type(module).__mro__:
        if cls in _KNOWN:
            factors = _KNOWN[cls]
            break
    else:
        named = [getattr(module, name, None) for name in ("to_q", "to_k", "to_v")]
        factors = _DIFFUSERS if all(isinstance(child, nn.Module) for child in named) else ()
    present = [[name for name in names if isinstance(getattr(module, name, None), nn.Module)] for names in factors]
    return [names for names in present if names]


class ProjectedAttention(nn.MultiheadAttention):
    """`nn.MultiheadAttention` with linear modules `q_proj`, `k_proj`, `v_proj` and `out_proj` that are really called.

    Arguments, answers and the formula are torch's (Vaswani et al., 2017, section 3.2.2). Made by `project`, in place.
    As `in_proj_bias` is None, `nn.TransformerEncoderLayer` does not take its fast path, which skips its submodules.
    """

    q_proj: nn.Linear
    k_proj: nn.Linear
    v_proj: nn.Linear

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """query [N, L, E], key [N, S, kdim], value [N, S, vdim] if `batch_first`; [L, N, E], …, if not; or without N.

        Raises RuntimeError for `is_causal` without `attn_mask`, as torch does: it is but a hint about the mask.
        """
        if is_causal and attn_mask is None:
            raise RuntimeError("is_causal is a hint about attn_mask, which is missing: give both")
        batched = query.dim() == 3
        q, k, v = self.q_proj(query), self.k_proj(key), self.v_proj(value)
        if not batched:
            q, k, v = q[None], k[None], v[None]
        elif not self.batch_first:
            q, k, v = q.transpose(0, 1), k.transpose(0, 1), v.transpose(0, 1)
        q, k, v = (x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for x in (q, k, v))  # [N, heads, L or S, d]
        mask = self._joined_mask(attn_mask, key_padding_mask, q)
        dropout = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            scores = (q / math.sqrt(q.shape[-1])) @ k.transpose(-2, -1)
            weights = F.dropout((scores if mask is None else scores + mask).softmax(-1), dropout)
            h = weights @ v
            weights = weights.mean(1) if average_attn_weights else weights
        else:
            h = F.scaled_dot_product_attention(q, k, v, mask, dropout)
        h = h.transpose(1, 2).flatten(2)  # [N, L, E]
        if not batched:
            return self.out_proj(h[0]), None if weights is None else weights[0]
        return self.out_proj(h if self.batch_first else h.transpose(0, 1)), weights

    def _joined_mask(self, attn_mask: Tensor | None, padding: Tensor | None, q: Tensor) -> Tensor | None:
        """What is added to the scores [N, heads, L, S]: masks [L, S] or [N·heads, L, S] and [N, S], True for -inf."""
        masks = []
        if attn_mask is not None:
            masks.append(attn_mask.unflatten(0, q.shape[:2]) if attn_mask.dim() == 3 else attn_mask[None, None])
        if padding is not None:
            masks.append(padding.reshape(q.shape[0], 1, 1, -1))
        added = [
            torch.zeros_like(m, dtype=q.dtype).masked_fill_(m, -math.inf) if m.dtype == torch.bool else m.to(q.dtype)
            for m in masks
        ]
        return sum(added[1:], added[0]) if added else None


def project(name: str, attention: nn.MultiheadAttention) -> None:
    """Make a `ProjectedAttention` of it, in place; `name` is for messages.

    Raises UserError for `add_bias_kv` and `add_zero_attn`, which no layer computes.
    """
    for option, given in (("add_bias_kv", attention.bias_k is not None), ("add_zero_attn", attention.add_zero_attn)):
        require(not given, f"{name}: nn.MultiheadAttention with {option} cannot be quantized: leave it out with skip=")
    if attention.in_proj_weight is not None:
        weights = attention.in_proj_weight.chunk(3)
    else:
        weights = attention.q_proj_weight, attention.k_proj_weight, attention.v_proj_weight
    biases = (None,) * 3 if attention.in_proj_bias is None else attention.in_proj_bias.chunk(3)
    for part, weight, bias in zip(("q_proj", "k_proj", "v_proj"), weights, biases, strict=True):
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
        layer.weight = nn.Parameter(weight.detach().clone(), weight.requires_grad)
        if bias is not None:
            layer.bias = nn.Parameter(bias.detach().clone(), bias.requires_grad)
        attention.add_module(part, layer)
    for parameter in ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight", "in_proj_bias"):
        attention.register_parameter(parameter, None)
    attention.__class__ = ProjectedAttention


def project_all(net: nn.Module, skipped: set[nn.Module]) -> None:
    """`project` every attention of torch's in `net` but the skipped; and no encoder packs sequences any more.

    Subclasses with a forward of their own are left: their layers may run as modules. Packed (nested) sequences belong
    to the fast path.
    """
    for name, module in net.named_modules():
        if isinstance(module, nn.TransformerEncoder):
            module.use_nested_tensor = False
        if isinstance(module, nn.MultiheadAttention) and module not in skipped:
            if type(module).forward is nn.MultiheadAttention.forward:
                project(name or "the network", module)


register_attention(ProjectedAttention, "q_proj", "k_proj", "v_proj")
register_attention(AttentionBlock, "query", "key", "value")
