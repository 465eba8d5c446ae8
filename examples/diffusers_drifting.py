"""Drifting on a UNet of diffusers, saved as a pipeline of diffusers that samples digits in one step.

    python examples/diffusers_drifting.py runs/diffusers-drifting

The example runs for about a minute on one core. The network is a `UNet2DModel` made from a config, used as a generator:
it gets noise and a class, and the time zero. In every update each class is a cloud of generated digits, which real
digits of the class attract and which repel one another. At the end a fresh process loads the pipeline and draws ten
digits of every class, each in one evaluation, into `samples.png`.
"""

import argparse
import copy
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import torch
from diffusers import UNet2DModel

from onestep_adapters.backbones.diffusers import DiffusersNetwork, OneStepPipeline
from onestep_adapters.data.digits import digits_dataset
from onestep_adapters.training import update_ema
from onestep_core import drifting_regression, laplace, mean_shift_field, mse

CONFIG = {
    "sample_size": 8,
    "in_channels": 1,
    "out_channels": 1,
    "block_out_channels": (24, 32),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "num_class_embeds": 10,
}

SAMPLE = """
import sys
import torch
from PIL import Image
from onestep_adapters.backbones.diffusers import OneStepPipeline

folder = sys.argv[1]
pipe = OneStepPipeline.from_pretrained(folder)
labels = torch.arange(10).repeat(10)
images = pipe(len(labels), generator=torch.Generator().manual_seed(1), class_labels=labels).images
picture = Image.new("L", (80, 80))
for index, image in enumerate(images):
    picture.paste(image, (index % 10 * 8, index // 10 * 8))
picture.resize((480, 480), Image.Resampling.NEAREST).save(folder + "/samples.png")
print(f"{len(images)} digits, each in one evaluation: {folder}/samples.png")
"""


def train(steps: int, *, each: int = 16, positives: int = 48, seed: int = 0) -> DiffusersNetwork:
    """The average of the weights, in evaluation mode; ``each`` digits of a class are generated in an update."""
    torch.manual_seed(seed)
    generator, data = torch.Generator().manual_seed(seed), digits_dataset()
    network = DiffusersNetwork(UNet2DModel.from_config(CONFIG), times=0)
    average = copy.deepcopy(network)
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 50) * (1 - step / steps))
    field = partial(mean_shift_field, kernel=partial(laplace, temperature=1.0))
    labels = torch.arange(10).repeat_interleave(each)
    start = time.perf_counter()
    for step in range(steps):
        real = data.groups(positives, generator)  # classes lie contiguously
        samples = network(torch.randn(len(labels), 1, 8, 8, generator=generator), class_labels=labels)
        loss = mse(*drifting_regression(samples.flatten(1), real.flatten(1), field=field, groups=10)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        update_ema(average, network, decay=min(0.99, (step + 1) / (step + 10)))
        if step % 100 == 0:
            spread = float(samples.detach().reshape(10, each, -1).std(dim=1).mean())
            expected = float(real.reshape(10, positives, -1).std(dim=1).mean())
            print(
                f"update {step:4d}  spread {spread / expected:.2f} of the data's  {time.perf_counter() - start:4.0f} s"
            )
    return average.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", help="folder of the pipeline, for example runs/diffusers-drifting")
    parser.add_argument("--steps", type=int, default=400, help="number of training updates")
    arguments = parser.parse_args()
    OneStepPipeline(train(arguments.steps)).save_pretrained(Path(arguments.folder))
    subprocess.run([sys.executable, "-c", SAMPLE, arguments.folder], check=True)


if __name__ == "__main__":
    main()
