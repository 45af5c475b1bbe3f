"""Train a recipe in child processes that are killed at random times, until one of them finishes.

`python kill_driver.py RECIPE.json SEED KILLS` prints {"kills": ..., "resumed_from": [...]}. Children are forked, so
that they start quickly.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch
from transformers import TrainerCallback

import multilora
from multilora.training.checkpoint import checkpoints


class Slowly(TrainerCallback):
    """Makes a run long enough to be killed many times."""

    def on_step_end(self, args, state, control, **_):
        time.sleep(0.02)


def child(recipe):
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    try:
        multilora.train(recipe, resume=True, callbacks=[Slowly()])
    except BaseException as error:
        print(repr(error), flush=True)
        os._exit(1)
    os._exit(0)


def main():
    path, seed, target_kills = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)
    with open(path) as file:
        recipe = json.load(file)
    rng = random.Random(seed)
    kills, resumed_from = 0, []
    folder = Path(recipe["output_dir"]) / "checkpoints"
    log = folder.parent / "metrics.jsonl"
    while True:
        complete = checkpoints(folder)
        resumed_from.append(complete[-1].name if complete else None)
        process = os.fork()
        if process == 0:
            child(recipe)
        # A third of the kills happen at any time after the start. The others follow shortly after a new line in the
        # log, so that the run makes progress and is killed during steps and while writing.
        enough = kills >= target_kills
        size = log.stat().st_size if log.exists() else 0
        wait = enough or rng.random() > 1 / 3
        deadline = time.monotonic() + (600 if wait else rng.uniform(0.05, 3))
        status = None
        while time.monotonic() < deadline:
            ended, status = os.waitpid(process, os.WNOHANG)
            if ended:
                break
            if wait and not enough and log.exists() and log.stat().st_size != size:
                wait, deadline = False, time.monotonic() + rng.uniform(0, 0.3)
            time.sleep(0.002)
        else:
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
            kills += 1
            continue
        if status != 0:
            sys.exit(f"a child failed with {status} after {kills} kills")
        print(json.dumps({"kills": kills, "resumed_from": resumed_from}))
        return


if __name__ == "__main__":
    main()
