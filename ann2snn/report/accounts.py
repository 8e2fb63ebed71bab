"""What every network of a run costs, by how it ran: of the ANN, of spiking networks from rest, and of carried ones."""

from __future__ import annotations

import math

from .collect import Run
from .costs import CostAccount, CostRow
from .modes import Mode


def accounts(run: Run) -> dict[Mode, CostAccount]:
    """The account of each way of running; of two of the same way that of `cost.json`."""
    files = [tuned.costs for tuned in run.tsm_runs] + [run.carried.costs if run.carried else None, run.costs]
    counted = [account for costs in files if costs for account in costs.accounts if account.rows]
    return {mode_of(account, run): account for account in counted}


def mode_of(account: CostAccount, run: Run) -> Mode:
    """The network that was counted, and how it ran."""
    if account.direct or account.spiking is None:
        return Mode("trained", account.direct)
    carried = run.carried.carried_text if run.carried and account.carried else ""
    return Mode("converted", account.spiking, carried=carried)


def main_row(account: CostAccount) -> CostRow:
    """Of an ANN the way that skips zeros, of a spiking network the one that counts its accumulates as such."""
    is_ann = account.spiking is None and account.direct is None
    return account.rows[2 if is_ann and len(account.rows) > 2 else 0]


def steps_of(account: CostAccount) -> float:
    """Time steps of a call; of a carried `stream`, whose calls end when nothing fires, the mean. nan for an ANN."""
    if account.carried and account.spiking and account.spiking.schedule == "stream":
        return account.steps_run
    steps = main_row(account).steps[0]
    return math.nan if steps is None or steps < 1 else float(steps)
