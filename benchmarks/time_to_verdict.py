"""Time to a perplexity verdict: stopping early, all windows, and lm-eval's own loop over the same windows.

    python benchmarks/time_to_verdict.py .models/SmolLM2-135M-Instruct --format nf4 --windows 220

One run: both models are loaded once, then (1) the gate with every window, (2) the same gate with a limit of twice the
true difference, stopping early, (3) the same with the reference that (1) stored, (4) ``HFLM`` of lm-eval scoring every
window with both models, one at a time. All but (3) score both models.
"""

from __future__ import annotations

import argparse
import logging
import math
import tempfile
import time
from pathlib import Path
from typing import Any

from pytest_quant.engines.source import ModelSource
from pytest_quant.gates.gate import Gate
from pytest_quant.gates.measurement import Measurement
from pytest_quant.progress import Quiet
from pytest_quant.session import Session
from pytest_quant.settings import Settings
from pytest_quant.spec import ModelSpec


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model")
    parser.add_argument("--format", default="nf4")
    parser.add_argument("--windows", type=int, default=220)
    told = parser.parse_args()
    spec = ModelSpec(ModelSource(told.model), "fp32")
    with tempfile.TemporaryDirectory() as name:
        cache = Path(name)

        def settings(folder: str, full: bool) -> Settings:
            return Settings(protocol="gptq-512", max_windows=told.windows, full=full, cache_dir=cache / folder)

        sessions = {
            "all windows": Session(settings("all", True), Quiet()),
            "stopping early": Session(settings("early", False), Quiet()),
            "stopping early, reference stored": Session(settings("all", False), Quiet()),
        }
        first = sessions["all windows"]
        held = {format: first.model(spec, format) for format in (told.format, "fp32")}
        for session in sessions.values():
            session.__dict__["models"] = first.models
            session.quality.identity(spec)
        found: dict[str, tuple[float, Measurement]] = {}
        limit = math.inf
        for what, session in sessions.items():
            gate = Gate("perplexity_delta", (("max_ratio", limit),))
            started = time.perf_counter()
            measured = session.measure(spec, told.format, gate)
            found[what] = time.perf_counter() - started, measured
            if what == "all windows":
                limit = math.exp(2.0 * measured.quantities["ln_ratio"].value)
        started = time.perf_counter()
        theirs = lm_eval_ratio(held, told.format, first.population.windows(spec.source))
        lm_eval = time.perf_counter() - started
    exact = found["all windows"][1].quantities["ratio"].value
    print(f"{told.format} against fp32, {told.windows} windows of 512 tokens, limit {limit:.4f}x (twice the true nats)")
    print(f"perplexity ratio by all windows {exact:.6f}, by lm-eval's loop {theirs:.6f}")
    early = found["stopping early"][0]
    for what, (seconds, measured) in found.items():
        used, total = measured.windows or (0, 0)
        print(f"  {what:34} {seconds:7.1f} s   {used:3}/{total} windows   {seconds / early:6.2f} times stopping early")
    print(
        f"  {'lm-eval, the same windows':34} {lm_eval:7.1f} s   {told.windows:3}/{told.windows} windows   "
        f"{lm_eval / early:6.2f} times stopping early"
    )


def lm_eval_ratio(held: Any, format: str, windows: Any) -> float:
    """Perplexity ratio by lm-eval's ``loglikelihood`` loop."""
    from lm_eval.models.huggingface import HFLM

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    means = {}
    for name in (format, "fp32"):
        model = HFLM(pretrained=held[name].model, tokenizer=held[name].tokenizer, batch_size=1, max_length=512)
        requests = []
        for window in windows.drawn:
            tokens = window.pieces[0].tokens.tolist()
            requests.append((("", str(window.index)), tokens[:1], tokens[1:]))
        answers = model._loglikelihood_tokens(requests, disable_tqdm=True)
        means[name] = -sum(answer[0] for answer in answers) / (511 * len(windows.drawn))
    return math.exp(means[format] - means["fp32"])


if __name__ == "__main__":
    main()
