"""Runs of pytest that are killed at random moments, and resumed.

    python benchmarks/kill_anywhere.py [--runs 50] [--seed 7] [--workers N]

One half is killed with SIGKILL after a random time between the start and the usual end, the other when it opens, moves
or removes a file for the n-th time. After each every file below the project is read back; then ``--quant-resume`` runs
to its end. A line a run, and what went wrong in all; the model is a tiny one of random weights.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import killing  # noqa: E402
from small_models import save_llama  # noqa: E402


def tokenizer():
    """One token a byte."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE(vocab={token: number for number, token in enumerate(alphabet)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token=alphabet[0], pad_token=alphabet[0])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--workers", type=int, default=0)
    told = parser.parse_args()
    arguments = ("-n", str(told.workers)) if told.workers else ()
    start = time.monotonic()
    server = killing.Server(ROOT)
    with tempfile.TemporaryDirectory() as folder:
        model = save_llama(Path(folder) / "tiny-llama", tokenizer(), learn=60)
        runs = []
        for killed in killing.kill_anywhere(server, Path(folder), model, told.runs, told.seed, arguments):
            runs.append(killed)
            verdict = "same baseline" if killed.same else "ANOTHER BASELINE"
            print(
                f"{len(runs):3} killed {killed.how}: {killed.kept} kept, {killed.reused} reused, {verdict}, "
                f"{killed.leftovers} left over",
                flush=True,
            )
    server.close()
    lost = sum(killed.kept - killed.reused for killed in runs)
    other = sum(not killed.same for killed in runs)
    left = sum(killed.leftovers for killed in runs)
    ended = sum(killed.status == 1 for killed in runs)
    print(
        f"{len(runs)} runs ({ended} were over before), {sum(killed.kept for killed in runs)} finished measurements: "
        f"{lost} measured again, {other} other baselines, {left} left over, {time.monotonic() - start:.0f} s"
    )
    return int(bool(lost or other or left))


if __name__ == "__main__":
    sys.exit(main())
