"""MeanFlow on a UNet of diffusers, saved as a pipeline of diffusers that samples digits in one step.

    python examples/diffusers_meanflow.py runs/diffusers-meanflow

The example runs for about two minutes on one core. The network is a `UNet2DModel` made from a config; it gets a second
time, which has no effect at the start. The training loop is written out: draw data, noise and times, regress, weight,
average the weights. At the end a fresh process loads the pipeline and draws ten digits of every class, each in one
evaluation, into `samples.png`. So short a training gives rough digits.
"""

import argparse
import copy
import subprocess
import sys
import time
from pathlib import Path

import torch
from diffusers import UNet2DModel

from onestep_adapters.backbones.diffusers import DiffusersNetwork, OneStepPipeline
from onestep_adapters.data.digits import digits_dataset
from onestep_adapters.networks import as_average_velocity
from onestep_adapters.training import update_ema
from onestep_core import Linear, adaptive, meanflow_regression, ordered, squared_l2

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


def train(steps: int, *, batch: int = 64, seed: int = 0) -> DiffusersNetwork:
    """The average of the weights, in evaluation mode."""
    torch.manual_seed(seed)
    generator, path, data = torch.Generator().manual_seed(seed), Linear(), digits_dataset()
    network = DiffusersNetwork(UNet2DModel.from_config(CONFIG), times=2)
    average = copy.deepcopy(network)
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 50) * (1 - step / steps))
    start = time.perf_counter()
    for step in range(steps):
        images, labels = data.batch(batch, generator)
        noise = torch.randn(images.shape, generator=generator)
        t, s = ordered(*torch.rand(2, batch, generator=generator))
        moving = batch // 2  # the first half jumps; the others learn the velocity itself
        s = torch.where(torch.arange(batch) < moving, s, t)
        z, v = path(images, noise, t)
        velocity = as_average_velocity(network, class_labels=labels)
        raw = squared_l2(*meanflow_regression(velocity, z, v, t, s, moving=moving))
        loss = (raw * adaptive(raw, power=0.5, epsilon=0.01)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        update_ema(average, network, decay=min(0.99, (step + 1) / (step + 10)))
        if step % 100 == 0:
            print(f"update {step:4d}  error {float(raw.detach().mean()):6.2f}  {time.perf_counter() - start:4.0f} s")
    return average.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", help="folder of the pipeline, for example runs/diffusers-meanflow")
    parser.add_argument("--steps", type=int, default=500, help="number of training updates")
    arguments = parser.parse_args()
    network = train(arguments.steps)
    OneStepPipeline(network, Linear()).save_pretrained(Path(arguments.folder))
    subprocess.run([sys.executable, "-c", SAMPLE, arguments.folder], check=True)


if __name__ == "__main__":
    main()
