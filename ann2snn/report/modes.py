"""What is reported on: a network under a way of running it, and how that is named, ordered and coloured."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..config import AUTO, FULL_PRECISION, SpikingConfig

NETWORK_LABELS = {"trained": "quantized ANN", "converted": "converted SNN", "finetuned": "fine-tuned SNN"}
GREY, BLUE, ORANGE, GREEN, PURPLE = "#4d4d4d", "#0072b2", "#d55e00", "#009e73", "#9b3f8f"
OTHER_COLOURS = ("#b8860b", "#56b4e9", "#8c564b", "#7f7f7f")


@dataclass(frozen=True)
class Mode:
    """network: "trained", "converted", "finetuned", or the name a file gives. spiking: None for an ANN."""

    network: str
    spiking: SpikingConfig | None = None
    weights: str = "ema"

    def __post_init__(self) -> None:
        if self.spiking and self.spiking.schedule == "layer_sync":  # the other fields decide nothing there
            object.__setattr__(self, "spiking", SpikingConfig("layer_sync"))

    def network_label(self, bits: int | None = None) -> str:
        label = NETWORK_LABELS.get(self.network, self.network)
        if self.network == "trained" and bits == FULL_PRECISION:
            label = "ANN (full precision)"
        return label if self.weights == "ema" else f"{label}, {self.weights} weights"

    @property
    def schedule_label(self) -> str:
        """Such as "stream +auto unsigned"; "–" for an ANN."""
        if self.spiking is None:
            return "–"
        parts = [self.spiking.label]
        if self.spiking.stream_norm != "cumulative":
            parts.append(f"{self.spiking.stream_norm.replace('_', '-')} norm")
        if not self.spiking.signed:
            parts.append("unsigned")
        if self.spiking.if_neuron != "bounded":
            parts.append(f"{self.spiking.if_neuron} neuron")
        return " ".join(parts)

    @property
    def label(self) -> str:
        return self.network_label() if self.spiking is None else f"{self.network_label()}, {self.schedule_label}"

    @property
    def order(self) -> tuple:
        """Sorts the usual modes as they are read: ANN, layer_sync, stream, settled stream, fine-tuned."""
        known = list(NETWORK_LABELS)
        rank = known.index(self.network) if self.network in known else len(known)
        settle = self.spiking.settle_steps if self.spiking else 0
        settle = float("inf") if settle == AUTO else settle
        return (rank, self.spiking is not None, self.schedule_label.split(" ")[0], settle, self.label)

    def same_slot(self, other: Mode) -> bool:
        """Whether both belong in one line of the summary, minor settings aside; fine-tuned ones whatever settles."""
        if (self.network, self.weights) != (other.network, other.weights):
            return False
        if self.spiking is None or other.spiking is None:
            return self.spiking is other.spiking
        mine, theirs = ((s.settle_steps, s.burst) for s in (self.spiking, other.spiking))
        same_settling = mine == theirs
        return self.spiking.schedule == other.spiking.schedule and (same_settling or self.network == "finetuned")


STREAM = SpikingConfig("stream")
#: The lines every summary has, in this order.
USUAL_MODES = (
    Mode("trained"),
    Mode("converted", SpikingConfig("layer_sync")),
    Mode("converted", STREAM),
    Mode("converted", replace(STREAM, settle_steps=AUTO)),
    Mode("finetuned", STREAM),
)
USUAL_COLOURS = (GREY, BLUE, ORANGE, GREEN, PURPLE)


def colours(modes: list[Mode]) -> dict[Mode, str]:
    """A colour for each mode: the usual ones keep theirs on every chart."""
    result, left = {}, list(OTHER_COLOURS)
    for mode in modes:
        usual = [c for m, c in zip(USUAL_MODES, USUAL_COLOURS, strict=True) if m.same_slot(mode)]
        if usual and usual[0] not in result.values():
            result[mode] = usual[0]
        else:
            result[mode] = left.pop(0) if left else GREY
    return result
