"""The examples of drifting do what their pages say."""

import importlib.util
from pathlib import Path

EXAMPLES = Path(__file__).parents[4] / "examples"


def example(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_number_of_felt_positives_sees_the_collapse_first(tmp_path):
    collapse = example("drifting_collapse")
    results = {name: collapse.train(name, steps=45) for name in collapse.RUNS}
    found = {name: collapse.alarms(result.numbers) for name, result in results.items()}
    first, *others = found["released"].values()
    assert first is not None
    assert others == [None, None, None]
    assert set(found["mean-shift"].values()) == {None}
    collapse.draw_picture(results, str(tmp_path / "collapse.png"))
    assert (tmp_path / "collapse.png").stat().st_size > 10_000


def test_guided_digits_are_drawn(tmp_path):
    digits = example("drifting_digits")
    runs = {encoder: digits.train(encoder, steps=2) for encoder in ("pixels", "random")}
    drawn = {name: digits.samples(run, each=1) for name, run in runs.items()}
    assert all(images.shape == (10, 1, 8, 8) for scales in drawn.values() for images in scales.values())
    digits.draw_picture(drawn, str(tmp_path / "digits.png"))
    assert (tmp_path / "digits.png").stat().st_size > 5_000
