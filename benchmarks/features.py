"""Time of an update of drifting in the features of EfficientNet-Lite0: real images from the cache, or encoded anew.

    python -m benchmarks.features                  # images of 28 x 28, grey; two minutes on a laptop
    python -m benchmarks.features --side 64 --channels 3

The images are random: the time does not depend on them. Ten classes; the update is the whole one (generator, encoder,
field, backward pass) without the optimiser. ``monitors`` is the mean extra time of an update for the numbers that are
shown, most of which are computed in every twentieth update.
"""

import argparse
import tempfile
import time
from pathlib import Path

import torch

from benchmarks import harness
from onestep_adapters.data import ArrayDataset, Batch
from onestep_adapters.methods import Drifting, Network, Training
from onestep_adapters.methods.drifting.monitors import EVERY, DriftMonitors
from onestep_adapters.runs import Run, start_run

NETWORK = Network("decoder", width=32, depth=1)


def run(options: argparse.Namespace, limit: float) -> Run:
    """A run on random images with ten classes."""
    images = torch.rand(options.images, options.channels, options.side, options.side) * 2 - 1
    data = ArrayDataset("random", Batch(images, torch.arange(options.images) % 10))
    drifting = Drifting(
        Training(steps=1000, batch=10 * options.generated),
        NETWORK,
        positives=options.positives,
        encoder="efficientnet-lite0",
        relative_temperatures=True,
        temperatures=(0.02, 0.05, 0.2),
        cache_features=limit,
    )
    return start_run("drifting", data, drifting)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, number in {
        "side": 28,
        "channels": 1,
        "images": 2000,
        "generated": 16,
        "positives": 64,
        "rounds": 9,
    }.items():
        parser.add_argument(f"--{name}", type=int, default=number)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        torch.manual_seed(0)
        rivals, made = {}, {}
        for name, limit in (("encoded anew", 0.0), ("from the cache", 100.0)):
            found = run(options, limit)
            found.cache = Path(home)
            start = time.perf_counter()
            context = found.prepared()
            made[name] = time.perf_counter() - start
            generator = torch.Generator().manual_seed(0)

            def update(found: Run = found, context: object = context, generator: torch.Generator = generator) -> None:
                loss, _ = found.options.loss(context, found.state.network, generator)  # type: ignore[arg-type]
                loss.backward()

            rivals[name] = update
            found.state.step = 1
        measured = harness.interleaved(rivals, rounds=options.rounds)
        for name, numbers in measured.items():
            print(f"{name:<16} {1e3 * numbers['seconds']:6.0f} ms an update, ratio {numbers['ratio']:.2f}")
        print(f"the cache of {options.images} images took {made['from the cache'] - made['encoded anew']:.1f} s")
        whole = DriftMonitors.logs
        DriftMonitors.logs = lambda *_, **__: {}  # type: ignore[method-assign,assignment]
        bare = rivals["from the cache"]
        without = harness.interleaved({"bare": bare}, rounds=options.rounds)["bare"]["seconds"]
        DriftMonitors.logs = whole  # type: ignore[method-assign]
        found.state.step = 0
        heavy = harness.interleaved({"heavy": bare}, rounds=options.rounds)["heavy"]["seconds"]
        light = measured["from the cache"]["seconds"]
        print(f"monitors         {100 * ((heavy - light) / EVERY + light - without) / without:.1f} % of an update")


if __name__ == "__main__":
    main()
