r"""The ablation of encoders on Fashion-MNIST: drifting in the features of one encoder after another.

    python examples/ablation_encoders.py --folder runs/encoders-ablation --picture encoders.png

The paper compares encoders by the FID of a generator that drifts in their features (https://arxiv.org/abs/2602.04770:
ImageNet, 50,000 samples): SimCLR, MoCo-v2, MAE of two widths, and MAE fine-tuned as a classifier. This script trains
the same kinds at a small size, for example

    onestep train moco --data fashion-mnist --folder runs/encoders-ablation/moco
    onestep train fine-tuning --encoder-from runs/encoders-ablation/mae-wide ...

and beside them drifts in raw pixels and in the features of a random network, which the paper does not. The encoders
have the updates of their presets, so not the same time. Every generator has the same updates, batches and initial
weights of a seed. The features are those of the layers that each encoder suggests.

The judge is EfficientNet-Lite0, which trained nothing here, see judged.py. That is why there is no row for it as an
encoder. The script can be interrupted: what is finished is read from the folder.
"""

from pathlib import Path

from ablation import Ablation, Encoder, Variant, run_ablation, trained_encoder

PUBLISHED = {"SimCLR": 11.05, "MoCo": 8.41, "MAE": 8.46, "wider MAE": 7.26, "wider MAE, fine-tuned": 3.36}
"""FID by encoder: Deng et al., https://arxiv.org/abs/2602.04770, table on encoders. The two MAE are those of width 256
and 384, the fine-tuned one that of width 640, trained longer."""

GENERATOR = "--batch 100 --positives 32 --learning-rate 4e-3 --warmup 10 --bounded"
"""Options of every generator; the others are those of the preset: the released field and its temperatures."""

WIDER = ("--width", "96")


def made(folder: Path, encoder_steps: int | None) -> tuple[Ablation, dict[str, Encoder]]:
    steps = () if encoder_steps is None else ("--steps", str(encoder_steps))
    encoders = {
        "SimCLR": trained_encoder(folder / "simclr", "simclr", *steps),
        "MoCo": trained_encoder(folder / "moco", "moco", *steps),
        "MAE": trained_encoder(folder / "mae", "mae", *steps),
        "wider MAE": trained_encoder(folder / "mae-wide", "mae", *WIDER, *steps),
    }
    from_mae = ("--encoder-from", str(encoders["wider MAE"].folder))
    encoders["wider MAE, fine-tuned"] = trained_encoder(folder / "fine-tuned", "fine-tuning", *from_mae, *steps)
    variants = [Variant(name, f"drifting-{name}", ("--encoder", name), None) for name in ("pixels", "random")]
    for name, found in encoders.items():
        options = ("--encoder", str(found.folder))
        variants.append(Variant(name, f"drifting-{found.folder.name}", options, PUBLISHED[name]))
    return Ablation("encoder", tuple(variants), tuple(GENERATOR.split())), encoders


if __name__ == "__main__":
    run_ablation(__doc__.splitlines()[0], "encoders-ablation", made, steps=300)
