"""The targets, and what a measurement says about each: pass, short, or not measured."""

from __future__ import annotations

from dataclasses import dataclass

from .results import Case

PASS, SHORT, NOT_MEASURED = "pass", "short", "not measured"
DEVICES = ("cpu", "cuda")
DEVICE_NAMES = {"cpu": "CPU", "cuda": "GPU"}


@dataclass(frozen=True)
class Target:
    """A bound on a ratio on one device. bound None: each case carries its own. section: where it is measured."""

    name: str
    section: str
    what: str
    device: str
    bound: float | None
    at_most: bool = True

    @property
    def text(self) -> str:
        limit = "(T + settle + 1)/T" if self.bound is None else f"{self.bound:g}"
        return f"{'≤' if self.at_most else '≥'} {limit}"

    def excess(self, case: Case) -> float:
        """How far a case is from its bound: at most 1 where it keeps it."""
        bound = case.bound if self.bound is None else self.bound
        return case.ratio / bound if self.at_most else bound / case.ratio

    def line(self, cases: list[Case], reason: str) -> dict[str, object]:
        """The target's line; the worst of its cases decides. reason: why there are none, if there are none."""
        line = {"target": self.name, "device": self.device, "what": self.what, "bound": self.text}
        if not cases:
            return line | {"measured": None, "verdict": NOT_MEASURED, "why": reason}
        worst = max(cases, key=self.excess)
        verdict = PASS if self.excess(worst) <= 1 else SHORT
        allowed = None if worst.bound is None else round(worst.bound, 3)
        figures = {"measured": worst.ratio, "low": worst.low, "high": worst.high, "at": worst.label, "allowed": allowed}
        return line | figures | {"verdict": verdict, "why": ""}


def _targets() -> tuple[Target, ...]:
    sync = "layer_sync on counts, worst T, over the fp32 ANN's forward"
    loop, floor = "a loop over time steps with boolean masks over stream", "stream over T × the ANN's convolutions"
    targets = []
    for device in DEVICES:
        cpu = device == "cpu"
        targets += [
            Target("layer_sync_time", "forward", f"{sync}: time", device, 1.15),
            Target("layer_sync_memory", "memory", f"{sync}: peak memory", device, 1.2),
            Target("masked_wide", "stream", f"{loop}, ch 128", device, 2.0 if cpu else 5.0, at_most=False),
            Target("masked_narrow", "stream", f"{loop}, ch 32", device, 4.0 if cpu else 5.0, at_most=False),
            Target("floor_wide", "stream", f"{floor}, ch 128", device, 1.15 if cpu else 1.25),
            Target("floor_narrow", "stream", f"{floor}, ch 32", device, 1.4 if cpu else 1.25),
            Target("settle_wide", "settle", "stream settling by itself over stream, ch 128", device, None),
            Target("settle_narrow", "settle", "stream settling by itself over stream, ch 32", device, None),
            Target("qat_step", "training", "2-bit training step over the fp32 ANN's", device, 1.2),
            Target(
                "train_step",
                "training",
                "a plain fp32 channels-first loop's step over ours",
                device,
                1.2 if cpu else 3.0,
                at_most=False,
            ),
        ]
    claim = "DDIM-50 of 50,000 images, layer_sync: share of the measured bf16 matrix rate"
    return (*targets, Target("ddim50", "ddim50", claim, "cuda", 0.4, at_most=False))


TARGETS = _targets()


def target_lines(cases: dict[str, list[Case]], device: str, measured: tuple[str, ...]) -> list[dict[str, object]]:
    """One line for every target on every device. measured: the sections that ran, on `device`."""
    lines = []
    for target in TARGETS:
        if target.device != device:
            note = "no GPU" if target.device == "cuda" else "ran on a GPU; --device=cpu measures it"
            lines.append(target.line([], note))
        else:
            note = "gave no figure" if target.section in measured else f"--only leaves out {target.section}"
            lines.append(target.line(cases.get(target.name, []), note))
    return lines
