"""What is reported on: a network under a way of running it, and how that is named, ordered and coloured."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..config import AUTO, FULL_PRECISION, DirectSpiking, SpikingConfig

NETWORK_LABELS = {"trained": "quantized ANN", "converted": "converted SNN", "finetuned": "fine-tuned SNN"}
#: Colours are classes of the page, which say what they look like on light and on dark ground.
GREY, BLUE, ORANGE, GREEN, PURPLE = "grey", "blue", "orange", "green", "purple"
OTHER_COLOURS = ("ochre", "sky", "brown", "silver")


@dataclass(frozen=True)
class Mode:
    """network: "trained", "converted", "finetuned", or the name a file gives. spiking: None for an ANN.

    A directly trained network is "trained", whatever the file calls its stage.
    """

    network: str
    spiking: SpikingConfig | DirectSpiking | None = None
    weights: str = "ema"

    def __post_init__(self) -> None:
        if self.converted and self.converted.schedule == "layer_sync":  # the other fields decide nothing there
            object.__setattr__(self, "spiking", SpikingConfig("layer_sync"))
        if self.direct:
            object.__setattr__(self, "network", "trained")

    @property
    def converted(self) -> SpikingConfig | None:
        """How a converted network ran; None for another."""
        return self.spiking if isinstance(self.spiking, SpikingConfig) else None

    @property
    def direct(self) -> DirectSpiking | None:
        """How a directly trained network ran; None for another."""
        return self.spiking if isinstance(self.spiking, DirectSpiking) else None

    def network_label(self, bits: int | None = None) -> str:
        label = NETWORK_LABELS.get(self.network, self.network)
        if self.direct:
            label = self.direct.name
        elif self.network == "trained" and bits == FULL_PRECISION:
            label = "ANN (full precision)"
        return label if self.weights == "ema" else f"{label}, {self.weights} weights"

    @property
    def schedule_label(self) -> str:
        """Such as "stream +auto unsigned", or "4 steps, threshold 1"; "–" for an ANN."""
        if self.spiking is None:
            return "–"
        if isinstance(self.spiking, DirectSpiking):
            return f"{self.spiking.steps_label}, threshold {self.spiking.threshold:g}"
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
        if self.direct:
            direct = self.direct
            return (rank, True, direct.name, direct.spike_steps, direct.threshold, self.label)
        steps = self.converted.settle_steps if self.converted else 0
        settle = float("inf") if steps == AUTO else steps
        return (rank, self.spiking is not None, self.schedule_label.split(" ")[0], settle, 0.0, self.label)

    def same_slot(self, other: Mode) -> bool:
        """Whether both belong in one line of the summary, minor settings aside; fine-tuned ones whatever settles."""
        if (self.network, self.weights) != (other.network, other.weights):
            return False
        own, others = self.converted, other.converted
        if not (own and others):
            return self.spiking == other.spiking
        same_settling = (own.settle_steps, own.burst) == (others.settle_steps, others.burst)
        return own.schedule == others.schedule and (same_settling or self.network == "finetuned")


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
    result: dict[Mode, str] = {}
    spare = list(OTHER_COLOURS)
    for mode in modes:
        usual = [c for m, c in zip(USUAL_MODES, USUAL_COLOURS, strict=True) if m.same_slot(mode)]
        if usual and usual[0] not in result.values():
            result[mode] = usual[0]
        else:
            result[mode] = spare.pop(0) if spare else GREY
    return result
