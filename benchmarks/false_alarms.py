"""False alarms: the same model against itself and against a copy that was quantized again.

    python benchmarks/false_alarms.py .models/SmolLM2-135M-Instruct .models/window-scores.npz [--runs 200]

``--runs`` times NF4 is loaded anew, which quantizes it anew, and its gate is judged against the baseline of the first:
every verdict but ``passed`` and every change but 0 is counted. Then the stored scores of a copy (NF4 of what NF4 gives
back, see ``window_scores.py``) are judged against the original's in 2,000 random orders, as the plugin does it, and so
are the original's own with small shifts: how often is a change below ``min_effect`` called a regression, and one above
it not?
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pytest_quant import baseline
from pytest_quant.engines.source import ModelSource
from pytest_quant.environment import describe_hardware
from pytest_quant.gates.gate import Gate
from pytest_quant.gates.regression import MIN_EFFECT
from pytest_quant.gates.verdict import Verdict
from pytest_quant.progress import Quiet
from pytest_quant.session import Session
from pytest_quant.settings import Settings
from pytest_quant.spec import ModelSpec
from pytest_quant.stats import sequence
from pytest_quant.verdicts import Judge, Policy

GATE = Gate("perplexity_delta", (("max_ratio", 2.0),))


def live(model: str, runs: int) -> None:
    """Load, score and judge again and again."""
    spec = ModelSpec(ModelSource(model), "fp32")
    found: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        policy = Policy(compares=True, root=folder / "baselines")
        for run in range(runs + 1):
            session = Session(Settings(protocol="gptq-64", max_windows=24, cache_dir=folder / "cache"), Quiet())
            judge = Judge("test", GATE, session.device, policy)
            measured = session.measure(spec, "nf4", GATE, enough=judge.enough, questions=judge.questions)
            outcome = judge.decide(measured)
            if run == 0:
                hardware = describe_hardware(session.device)
                kept = baseline.Entry(**{**outcome.entry, "scores": measured.scores}) if outcome.entry else None
                assert kept is not None, "the first run records"
                path = baseline.path_for(policy.root, session.device.key, measured.model)
                about = {part: hardware[part] for part in ("key", "name")}
                baseline.write(path, baseline.merge(None, about, measured.model, [kept]))
                continue
            said = outcome.record["baseline"]
            key = f"{said['verdict']}, {said['change']}, {measured.windows[0] if measured.windows else 0} windows"
            found[key] = found.get(key, 0) + 1
            session.models.keep(())
    print(f"the same model, loaded and quantized {runs} times, against the baseline of the first:")
    for key, count in found.items():
        print(f"  {count:5} times {key}")


def judged(changes: NDArray[np.float64], alpha: float) -> tuple[Verdict, int]:
    """Verdict and windows of one order: passed as soon as the interval says so, regressed when all windows do."""
    weights = [1.0] * len(changes)
    for used in range(sequence.MIN_WINDOWS, len(changes) + 1):
        found = sequence.mean(changes[:used], weights[:used], len(changes), alpha)
        if found.high <= MIN_EFFECT["perplexity_delta"]:
            return Verdict.PASSED, used
    return Verdict.REGRESSED, len(changes)


def simulated(scores: Path, orders: int) -> None:
    """The copy, and shifts, in random orders."""
    with np.load(scores) as stored:
        nf4 = stored["nf4.nll"].astype(np.float64).mean(1)
        copy = stored["nf4-again.nll"].astype(np.float64).mean(1)
    noise = (copy - nf4) - (copy - nf4).mean()
    print(
        f"\nthe copy changes the mean by {(copy - nf4).mean():+.5f} nats, single windows by {(copy - nf4).std():.5f} "
        f"(sd); {orders} orders of {len(nf4)} windows, min_effect {MIN_EFFECT['perplexity_delta']}:"
    )
    cases = {"the copy itself": copy - nf4, "the same scores": nf4 - nf4}
    cases |= {f"the copy's noise around {shift:+.4f}": noise + shift for shift in (0.0, 0.0005, 0.0009, 0.0011, 0.002)}
    generator = np.random.default_rng(0)
    for name, changes in cases.items():
        verdicts = [judged(changes[generator.permutation(len(changes))], 0.005) for _ in range(orders)]
        regressed = sum(verdict is Verdict.REGRESSED for verdict, _ in verdicts)
        windows = np.mean([used for _, used in verdicts])
        print(f"  {name:34} regressed in {regressed:5} of {orders} orders, {windows:6.1f} windows on average")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model")
    parser.add_argument("scores", type=Path)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--orders", type=int, default=2000)
    told = parser.parse_args()
    simulated(told.scores, told.orders)
    live(told.model, told.runs)
