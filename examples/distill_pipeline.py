"""A DDPM of diffusers, trained on digits and saved as its pipeline, distilled to one step by three methods.

    python examples/distill_pipeline.py runs/distill

1. A `UNet2DModel` learns to predict the noise, in diffusers' own loop, and is saved as a `DDPMPipeline`.
2. `onestep distill` makes a pipeline of one step of it, by progressive distillation, DMD2 and f-distill.
3. `onestep evaluate` compares the students with 50 steps of the pipeline: the report is in the folder.
4. A fresh process loads the pipelines and draws ten digits of every class, each in one evaluation, into `samples.png`.

What is finished in the folder is not done again. On one core it takes most of an hour; docs/guides/distill.md has the
numbers.
"""

import argparse
import copy
import subprocess
import sys
import time
from pathlib import Path

import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

from onestep_adapters.cli import main as onestep
from onestep_adapters.data.digits import digits_dataset
from onestep_adapters.training import update_ema

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
METHODS = ("progressive", "dmd2", "f-distill")

SAMPLE = """
import sys
import torch
from PIL import Image
from onestep_adapters.backbones.diffusers import OneStepPipeline

folder, *methods = sys.argv[1:]
labels = torch.arange(10).repeat(10)
picture = Image.new("L", (84 * len(methods) - 4, 80), 128)
for place, method in enumerate(methods):
    pipe = OneStepPipeline.from_pretrained(f"{folder}/{method}/pipeline")
    images = pipe(len(labels), generator=torch.Generator().manual_seed(1), class_labels=labels).images
    for index, image in enumerate(images):
        picture.paste(image, (84 * place + index % 10 * 8, index // 10 * 8))
picture.resize((4 * picture.width, 4 * picture.height), Image.Resampling.NEAREST).save(f"{folder}/samples.png")
print(f"{', '.join(methods)}: 100 digits each, one evaluation a digit: {folder}/samples.png")
"""


def train_pipeline(folder: Path, steps: int, *, batch: int = 64, seed: int = 0) -> None:
    """A DDPM on the digits: the noise is predicted, as in the paper; the average of the weights is saved."""
    torch.manual_seed(seed)
    generator, data, scheduler = torch.Generator().manual_seed(seed), digits_dataset(), DDPMScheduler()
    unet = UNet2DModel(**CONFIG)
    average = copy.deepcopy(unet)
    optimizer = torch.optim.AdamW(unet.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1, (step + 1) / 50) * (1 - step / steps))
    start = time.perf_counter()
    for step in range(steps):
        images, labels = data.batch(batch, generator)
        noise = torch.randn(images.shape, generator=generator)
        t = torch.randint(scheduler.config.num_train_timesteps, (batch,), generator=generator)
        prediction = unet(scheduler.add_noise(images, noise, t), t, class_labels=labels).sample
        loss = (prediction - noise).square().mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        update_ema(average, unet, decay=min(0.995, (step + 1) / (step + 10)))
        if step % 200 == 0:
            print(
                f"update {step:4d}  error {float(loss.detach()):.3f}  {time.perf_counter() - start:4.0f} s", flush=True
            )
    DDPMPipeline(average.eval(), scheduler).save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=Path, help="folder of everything, for example runs/distill")
    parser.add_argument("--methods", nargs="+", default=METHODS, help="methods of onestep distill")
    parser.add_argument("--pipeline-steps", type=int, default=2400, help="training updates of the pipeline")
    parser.add_argument("--steps", type=int, default=800, help="training updates of each student")
    arguments = parser.parse_args()
    folder: Path = arguments.folder
    pipeline = folder / "ddpm"
    if not (pipeline / "model_index.json").is_file():
        train_pipeline(pipeline, arguments.pipeline_steps)
    for method in arguments.methods:
        words = ["distill", str(pipeline), "--method", method, "--data", "digits", "--folder", str(folder / method)]
        if onestep([*words, "--steps", str(arguments.steps), "--resume"]):
            raise SystemExit(1)
    runs = [str(folder / method) for method in arguments.methods]
    if onestep(["evaluate", *runs, "--baseline", str(pipeline), "--folder", str(folder)]):
        raise SystemExit(1)
    subprocess.run([sys.executable, "-c", SAMPLE, str(folder), *arguments.methods], check=True)


if __name__ == "__main__":
    main()
