r"""The ablation of anti-symmetry on Fashion-MNIST: attraction and repulsion of drifting with unequal factors.

    python examples/ablation_antisymmetry.py --folder runs/antisymmetry --picture antisymmetry.png

The drift of drifting models is attraction minus repulsion. With equal factors it changes its sign when data and samples
are exchanged, so it is zero for equal distributions. The paper multiplies one of the two by 1.5 or 2, or leaves out the
repulsion (https://arxiv.org/abs/2602.04770: ImageNet, FID of 50,000 samples). This script does the same at a small
budget. It trains one SimCLR encoder, then for every ratio and seed a generator with one-step drifting in its features,
all with the same updates, batches and initial weights of a seed:

    onestep train simclr --data fashion-mnist --folder runs/antisymmetry/encoder
    onestep train drifting --data fashion-mnist --encoder runs/antisymmetry/encoder --attraction 1.5 --repulsion 1 ...

The judge is EfficientNet-Lite0, which trained nothing here, see judged.py. The floor compares training images with the
same test images. The script can be interrupted: what is finished is read from the folder. The images are those of
Debian's package dataset-fashion-mnist, or see docs/data.md.
"""

from pathlib import Path

from ablation import Ablation, Encoder, Variant, run_ablation, trained_encoder

PUBLISHED = {
    (1.0, 1.0): 8.46,
    (1.5, 1.0): 41.05,
    (1.0, 1.5): 46.28,
    (2.0, 1.0): 86.16,
    (1.0, 2.0): 112.84,
    (1.0, 0.0): 177.14,
}
"""FID by attraction and repulsion: Deng et al., https://arxiv.org/abs/2602.04770, table on anti-symmetry."""

GENERATOR = (
    "--layers stages.2 --backbone decoder --no-class-start --batch 100 --positives 32 --learning-rate 1e-2 --warmup 10"
)
"""Options of every generator; the others are those of the preset."""


def variant(attraction: float, repulsion: float, published: float) -> Variant:
    name = f"{attraction:g} : {repulsion:g}" if repulsion else "attraction alone"
    options = ("--attraction", f"{attraction:g}", "--repulsion", f"{repulsion:g}")
    return Variant(name, f"{attraction:g}-{repulsion:g}", options, published)


def made(folder: Path, encoder_steps: int | None) -> tuple[Ablation, dict[str, Encoder]]:
    steps = () if encoder_steps is None else ("--steps", str(encoder_steps))
    encoder = trained_encoder(folder / "encoder", "simclr", *steps)
    variants = tuple(variant(*ratio, fid) for ratio, fid in PUBLISHED.items())
    return (
        Ablation("attraction : repulsion", variants, ("--encoder", str(encoder.folder), *GENERATOR.split())),
        {"SimCLR": encoder},
    )


if __name__ == "__main__":
    run_ablation(__doc__.splitlines()[0], "antisymmetry", made, steps=140)
