import json
import math
import platform
import subprocess
import sys

import attrs
import pytest
import torch

from onestep_adapters.metrics import (
    COLUMNS,
    Estimate,
    Evaluation,
    Measurement,
    References,
    Row,
    ToyScore,
    average,
    bars,
    class_gaussians_like,
    coverage,
    density,
    estimate,
    frechet_distance,
    from_json,
    gaussian_like,
    make_report,
    manifold_metrics,
    measure,
    nearest_distances,
    nearest_neighbour_accuracy,
    nearest_training_distance,
    passes,
    precision,
    recall,
    reference_rows,
    to_json,
    to_markdown,
    toy_reference,
    toy_score,
    train_classifier,
    write_report,
)
from onestep_core.errors import ConfigError
from onestep_core.fields.divergences import energy_distance


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(n, d, seed=0):
    return torch.randn(n, d, generator=generator(seed), dtype=torch.float64)


def with_moments(n, mean, covariance, seed=0):
    """Points whose sample mean and covariance are exactly these."""
    x = normal(n, len(mean), seed)
    x = x - x.mean(0)
    x = x @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(x.T))).T
    return x @ torch.linalg.cholesky(covariance).T + mean


# Fréchet distance


def test_frechet_of_commuting_gaussians_is_the_closed_form():
    a, b = torch.tensor([1.0, 4.0, 0.25]).double(), torch.tensor([9.0, 1.0, 0.25]).double()
    turn = torch.linalg.qr(normal(3, 3)).Q
    x = with_moments(50, torch.tensor([1.0, 0.0, 2.0]).double(), turn @ a.diag() @ turn.T)
    y = with_moments(70, torch.tensor([0.0, 0.0, 0.0]).double(), turn @ b.diag() @ turn.T, seed=1)
    expected = 5.0 + (a.sqrt() - b.sqrt()).square().sum().item()
    assert frechet_distance(x, y).item() == pytest.approx(expected, rel=1e-12)


def test_frechet_of_two_by_two_gaussians_is_the_closed_form():
    # In two dimensions tr (A B)^{1/2} = sqrt(tr(A B) + 2 sqrt(det A det B)).
    a = torch.tensor([[2.0, 0.6], [0.6, 1.0]]).double()
    b = torch.tensor([[1.0, -0.7], [-0.7, 3.0]]).double()
    zero = torch.zeros(2).double()
    root = math.sqrt((a @ b).trace().item() + 2 * math.sqrt(torch.det(a).item() * torch.det(b).item()))
    distance = frechet_distance(with_moments(40, zero, a), with_moments(30, zero, b, seed=1))
    assert distance.item() == pytest.approx((a + b).trace().item() - 2 * root, rel=1e-12)


def test_frechet_of_a_translation_and_of_itself_with_a_singular_covariance():
    x = normal(20, 3) @ normal(3, 40, seed=1)
    shift = normal(1, 40, seed=2)
    assert frechet_distance(x, x + shift).item() == pytest.approx(shift.square().sum().item(), rel=1e-12)
    assert frechet_distance(x, x).item() == pytest.approx(0, abs=1e-11)


def test_frechet_bias_is_the_documented_one():
    d, n = 16, 600
    found = [frechet_distance(normal(n, d, s), normal(n, d, s + 100)).item() for s in range(8)]
    assert sum(found) / 8 == pytest.approx((d + d * (d + 1) / 4) * 2 / n, rel=0.1)


def test_frechet_needs_two_samples():
    with pytest.raises(ConfigError, match="got 1 and 5"):
        frechet_distance(torch.ones(1, 2), torch.ones(5, 2))


# Neighbours


def test_neighbour_accuracy_is_one_half_for_one_law_and_one_for_separated_sets():
    n = 400
    found = nearest_neighbour_accuracy(normal(n, 8), normal(n, 8, seed=1)).item()
    assert abs(found - (n - 1) / (2 * n - 1)) < 4 * 0.5 / math.sqrt(2 * n)
    assert nearest_neighbour_accuracy(normal(n, 8), normal(n, 8, seed=1) + 50).item() == 1.0


def test_neighbour_accuracy_shares_ties():
    # All points equal: every other point is a nearest one, n - 1 of 2 n - 1 with the right label.
    assert nearest_neighbour_accuracy(torch.zeros(5, 2), torch.zeros(5, 2)).item() == pytest.approx(4 / 9)
    x = normal(50, 3)
    assert nearest_neighbour_accuracy(x, x.clone()).item() == 0.0


def test_manifold_of_one_law_has_the_documented_expectations():
    n, k = 500, 5
    found = [manifold_metrics(normal(n, 4, s), normal(n, 4, s + 100), k=k) for s in range(6)]
    expected = 1 - math.prod((n - i) / (2 * n - i) for i in range(1, k + 1))
    assert sum(m.coverage.item() for m in found) / 6 == pytest.approx(expected, abs=0.01)
    assert sum(m.density.item() for m in found) / 6 == pytest.approx(1, abs=0.03)
    assert min(min(m.precision.item(), m.recall.item()) for m in found) > 0.85


def test_manifold_of_disjoint_sets_is_zero():
    assert [v.item() for v in manifold_metrics(normal(50, 3), normal(60, 3, 1) + 99, k=3)] == [0, 0, 0, 0]


def test_manifold_tells_missing_from_invented():
    two, one = torch.cat([normal(100, 2), normal(100, 2, 1) + 20]), normal(200, 2, 2)
    assert precision(two, one).item() > 0.9
    assert recall(two, one).item() < 0.6
    assert coverage(two, one).item() < 0.6
    assert precision(one, two).item() < 0.6
    assert density(one, two).item() < 0.7
    assert coverage(one, two).item() > 0.8


def test_manifold_counts_copies_and_does_not_depend_on_blocks():
    x = normal(70, 3)
    stacked = torch.cat([x, x])  # every radius is zero at k = 1, and the ball is closed
    assert manifold_metrics(stacked, stacked, k=1).precision.item() == 1.0
    y = normal(50, 3, 1)
    assert manifold_metrics(x, y, k=4, block_size=7) == manifold_metrics(x, y, k=4)
    assert torch.allclose(
        nearest_neighbour_accuracy(x, x + 0.3, block_size=9), nearest_neighbour_accuracy(x, x + 0.3), rtol=1e-12
    )


def test_manifold_needs_more_than_k_points():
    with pytest.raises(ConfigError, match="5-th neighbour"):
        density(normal(5, 2), normal(9, 2))


def test_nearest_training_distance_sees_copies_and_leaves_oneself_out():
    train = normal(40, 5)
    assert nearest_training_distance(train[:10], train)[0].item() == 0.0
    rows = torch.arange(10)
    others = [torch.cdist(train[i : i + 1], torch.cat([train[:i], train[i + 1 :]])).min() for i in range(10)]
    assert torch.allclose(nearest_distances(train[:10], train, own=rows), torch.stack(others))
    with pytest.raises(ConfigError, match="quantiles"):
        nearest_training_distance(train, train, quantiles=(1.5,))


# Toys


class Ring:
    def __init__(self, modes=4, std=0.1):
        angle = torch.arange(modes) * (2 * math.pi / modes)
        self.means, self.std = torch.stack([angle.cos(), angle.sin()], 1), std

    def sample(self, count, *, generator=None):
        mode = torch.randint(len(self.means), (count,), generator=generator)
        return self.means[mode] + self.std * torch.randn(count, 2, generator=generator)


@pytest.fixture(scope="module")
def ring():
    law = Ring()
    return law, toy_reference(law, generator=generator(), count=1500, draws=3)


def scored(ring, sampler):
    law, reference = ring
    return toy_score(sampler, law, generator=generator(7), reference=reference)


def test_score_of_the_law_is_zero_and_of_its_moments_one(ring):
    law, _ = ring
    real = scored(ring, lambda n, g: law.sample(n, generator=g))
    assert abs(real.score) < 4 * real.se + 0.01
    assert real.mass_error < 0.05
    assert passes(real, real) == passes([real, real, real], [real])._replace(
        limit=passes(real, real).limit, reasons=passes(real, real).reasons
    )
    assert passes(real, real).text == "pass"
    fitted = scored(ring, lambda n, g: math.sqrt(0.51) * torch.randn(n, 2, generator=g))
    assert fitted.score == pytest.approx(1, abs=0.1)
    assert passes(fitted, real).text == "miss"


def test_toy_bars_miss_a_lost_mode_a_wrong_width_and_an_untrained_yardstick(ring):
    law, _ = ring
    real = scored(ring, lambda n, g: law.sample(n, generator=g))
    uneven = scored(ring, lambda n, g: Ring().means[torch.randint(3, (n,), generator=g)] + 0.1 * torch.randn(n, 2))
    assert uneven.mass_error == pytest.approx(0.25, abs=0.03)
    assert uneven.spreads[3] == 0
    narrow = scored(ring, lambda n, g: Ring(std=0.07).sample(n, generator=g))
    assert all(ratio == pytest.approx(0.7, abs=0.05) for ratio in narrow.spreads)
    verdict = passes(narrow._replace(score=0.0), real)
    assert not verdict.passed
    assert "standard deviation" in verdict.reasons[2]
    assert "miss" in verdict.reasons[2]
    verdict = passes(real._replace(score=0.0, mass_error=0.06), real)
    assert not verdict.passed
    assert verdict.reasons[1].startswith("miss")
    assert passes(real, real._replace(score=0.031)).text == "yardstick not trained"
    assert passes(real, real._replace(score=math.nan)).text == "yardstick not trained"


def test_toy_energies_are_the_energy_distance(ring):
    _, reference = ring
    drawn = []
    found = scored(ring, lambda n, g: drawn.append(torch.randn(n, 2, generator=g)) or drawn[-1])
    energies = [energy_distance(x.double(), y).item() for x, y in zip(drawn, reference.real, strict=True)]
    assert found.energy == pytest.approx(sum(energies) / 3, rel=1e-10)


def test_toy_score_limit_and_average():
    low, high = ToyScore(0.02, 0.003, 0, 0, 1), ToyScore(0.04, 0.004, 0, 0, 1)
    assert passes(low, low).limit == pytest.approx(0.046)
    assert passes(low._replace(score=0.047), low).text == "miss"
    assert average([low, high]).score == pytest.approx(0.03)
    assert average([low, high]).se == pytest.approx(0.0025)


def test_toy_score_says_what_is_wrong(ring):
    with pytest.raises(ConfigError, match="1500 of 1500 samples hold NaN"):
        scored(ring, lambda n, g: torch.full((n, 2), math.nan))
    with pytest.raises(ConfigError, match=r"expected samples of shape \[1500, 2\]"):
        scored(ring, lambda n, g: torch.zeros(n, 3))


# Reports, on the real digits


@pytest.fixture(scope="module")
def digits():
    pytest.importorskip("sklearn")
    from onestep_adapters.data.digits import load_digits

    train, validation, test = load_digits()
    classifier = train_classifier(*train, validation_images=validation.images, validation_labels=validation.labels)
    splits = Evaluation(train.images, validation.images, train.labels)
    spare = test.images
    references = reference_rows(splits=splits, classifier=classifier, generator=generator(), repeats=3)
    return splits, classifier, references, spare


def measured(digits, samples, repeats=2, **settings):
    splits, classifier, _, _ = digits
    return measure(samples, splits=splits, classifier=classifier, generator=generator(), repeats=repeats, **settings)


def missed(digits, samples, yardstick=None):
    row = Row("method", measured(digits, samples))
    return {verdict.name for verdict in bars(row, yardstick, digits[2]) if not verdict.passed}


def test_classifier_is_deterministic_cached_and_good(digits):
    splits, classifier, _, spare = digits
    assert classifier.validation_accuracy > 0.96
    assert classifier.features(spare).shape == (350, 32)
    settings = {"validation_images": splits.held_out, "validation_labels": torch.zeros(350, dtype=torch.long)}
    global_state = torch.get_rng_state()
    first = train_classifier(splits.train, splits.train_labels, **settings, steps=20)
    again = train_classifier(splits.train, splits.train_labels, **settings, steps=20)
    other = train_classifier(splits.train, splits.train_labels, **settings, steps=20, seed=1)
    assert torch.equal(torch.get_rng_state(), global_state)
    assert first is again
    assert not torch.equal(first.features(spare), other.features(spare))


def test_floor_is_near_perfect_and_moments_fail(digits):
    floor, moments, classes, again = (row.measurement.metrics for row in digits[2])
    assert floor["neighbour_accuracy"].mean == pytest.approx(0.5, abs=0.05)
    assert floor["density"].mean == pytest.approx(1, abs=0.1)
    assert floor["coverage"].mean > 0.93
    assert moments["neighbour_accuracy"].mean > 0.75
    assert classes["label_agreement"].mean > 0.95
    assert floor["nearest_training"].mean > 1  # its own copy in the training split is left out
    assert again["nearest_training"].mean == 0  # and here it is not
    assert again["neighbour_accuracy"].mean > floor["neighbour_accuracy"].mean + 0.02
    assert again["label_agreement"].mean > 0.99
    verdicts = {v.name: v for v in bars(digits[2].moments, None, digits[2])}
    assert {name for name, v in verdicts.items() if v.passed} == {COLUMNS["nearest_training"][0]}
    assert not all(v.passed for v in bars(digits[2].class_moments, None, digits[2]))


def test_held_out_images_of_another_split_pass_everything_but_luck(digits):
    found = measured(digits, digits[3], repeats=1)
    names = {v.name for v in bars(Row("real", found), None, digits[2]) if not v.passed}
    assert names <= {COLUMNS["nearest_training"][0]}
    assert found.metrics["nearest_training"].mean == pytest.approx(found.held_out_nearest, rel=0.1)
    assert found.metrics["nearest_training"].se is None


def test_copies_of_the_training_set_miss_the_last_bar_only(digits):
    samples = digits[0].train[:700]
    found = measured(digits, samples)
    assert found.metrics["nearest_training"].mean == 0
    assert missed(digits, samples) == {COLUMNS["nearest_training"][0]}


def test_a_constant_generator_misses_all_but_the_last(digits):
    constant = digits[0].train.mean(0, keepdim=True).expand(700, -1, -1, -1)
    names = missed(digits, constant)
    assert {"1-NN accuracy", "coverage", "E² in features", "Fréchet in features"} <= names


def test_noise_misses_density(digits):
    assert "density" in missed(digits, torch.randn(700, 1, 8, 8, generator=generator()))


def test_each_bar_is_at_its_limit(digits):
    splits, _, references, _ = digits
    floor = references.floor.measurement
    values = {name: e.mean for name, e in floor.metrics.items()}

    def row(name, changes, se=0.0):
        metrics = {k: Estimate(v, se) for k, v in {**values, "nearest_training": 9.0, **changes}.items()}
        return Row(name, attrs.evolve(floor, metrics=metrics))

    yardstick = row("yardstick", {})
    halfway = {
        name: (values[name] + references.class_moments.measurement.metrics[name].mean) / 2
        for name in ("energy_features", "frechet_features")
    }
    limits = {
        "neighbour_accuracy": values["neighbour_accuracy"] + 0.05,
        "density": 0.8 * values["density"],
        "coverage": 0.8 * values["coverage"],
        "energy_features": max(halfway["energy_features"], values["energy_features"] + 0.002),
        "frechet_features": max(halfway["frechet_features"], values["frechet_features"] + 0.002),
        "nearest_training": floor.held_out_nearest,
    }
    for name, limit in limits.items():
        sign = 1 if name in ("density", "coverage", "nearest_training") else -1
        for step, expected in ((1e-6, True), (-1e-6, False)):
            found = bars(row("method", {name: limit + sign * step}, se=0.001), yardstick, references)
            assert {v.name: v.passed for v in found}[COLUMNS[name][0]] is expected, name
            assert sum(not v.passed for v in found) == (not expected)
    # Above the moments row, also where the yardstick is worse.
    poor = row("yardstick", {"density": 0.01, "coverage": 0.01})
    verdicts = {v.name: v for v in bars(row("method", {"density": 0.02, "coverage": 0.02}), poor, references)}
    assert not verdicts["density"].passed
    assert not verdicts["coverage"].passed
    assert splits.name == "validation"


def test_a_row_without_measurement_misses_every_bar(digits):
    assert all(v.value is None and not v.passed for v in bars(Row("diverged", None), None, digits[2]))
    with pytest.raises(ConfigError, match="no measurement"):
        bars(digits[2].floor, Row("broken", None), digits[2])


def test_measure_does_not_depend_on_the_order_of_the_bars_or_on_the_global_generator(digits):
    samples = digits[0].train[:700]
    first = measured(digits, samples)
    torch.rand(3)
    assert measured(digits, samples) == first
    assert set(first.metrics) == set(COLUMNS) - {"label_agreement"}
    assert sum(first.histogram) == pytest.approx(1)
    assert sum(first.held_out_histogram) == pytest.approx(1)


def test_measure_says_what_is_wrong(digits):
    samples = digits[0].train[:700].clone()
    with pytest.raises(ConfigError, match=r"3 draws .* need 1050 samples, got 700"):
        measured(digits, samples, repeats=3)
    with pytest.raises(ConfigError, match=r"expected samples of shape \[N, 1, 8, 8\]"):
        measured(digits, samples.flatten(1))
    with pytest.raises(ConfigError, match="one label per sample"):
        measured(digits, samples, labels=torch.zeros(3, dtype=torch.long))
    samples[5, 0, 0, 0], samples[9] = math.nan, math.inf
    with pytest.raises(ConfigError, match="2 of 700 samples hold NaN or infinity"):
        measured(digits, samples)
    with pytest.raises(ConfigError, match="finite mean"):
        Estimate(math.nan)
    with pytest.raises(ConfigError, match="of one size"):
        Evaluation(torch.zeros(9, 1, 8, 8), torch.zeros(3, 1, 4, 4))


def test_gaussians_have_the_moments_of_their_data():
    data = normal(30, 4) @ normal(4, 4, 1) + 3
    drawn = gaussian_like(data, 40_000, generator=generator())
    assert torch.allclose(drawn.mean(0), data.mean(0), atol=0.1)
    assert torch.allclose(torch.cov(drawn.T), torch.cov(data.T), rtol=0.1, atol=0.2)
    labels = torch.arange(30) % 3
    drawn, classes = class_gaussians_like(data, labels, 30_000, generator=generator())
    for c in range(3):
        assert torch.allclose(drawn[classes == c].mean(0), data[labels == c].mean(0), atol=0.15)
    assert estimate([2.0]) == Estimate(2.0, None)


@pytest.fixture(scope="module")
def report(digits):
    splits, classifier, references, spare = digits
    rows = [
        Row("flow matching", measured(digits, spare, repeats=1), "50 Euler steps", 50, 61.5, 20_000, 20_000, 321.25),
        Row("copies", measured(digits, splits.train[:700]), steps=30_000, notes="chosen to fail | on purpose"),
        Row("diverged", None, "without warm-up", notes="NaN at step 312"),
    ]
    return make_report(
        rows, references=references, splits=splits, classifier=classifier, yardstick=rows[0].label, title="Digits"
    )


def test_report_survives_json(report):
    text = to_json(report)
    assert from_json(text) == report
    assert json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not strict JSON"))
    assert isinstance(from_json(text).references, References)
    assert isinstance(from_json(text).rows[0].measurement, Measurement)
    with pytest.raises(ConfigError, match="finite"):
        to_json(attrs.evolve(report, rows=(attrs.evolve(report.rows[0], training_seconds=math.nan),)))
    with pytest.raises(ConfigError, match="written by to_json"):
        from_json("{}")


def test_markdown_tells_everything(report):
    text = to_markdown(report)
    lines = text.splitlines()
    names = [row.label for row in (*report.references, *report.rows)]
    for heading in ("## Metrics", "## Classes"):
        table = lines[lines.index(heading) :]
        order = [next(i for i, line in enumerate(table) if line.startswith(f"| {name} |")) for name in names[:-1]]
        assert order == sorted(order)
    assert all(f"| {name} |" in text for name in names)
    for part in ("misses 6 of 6", "not measured", "chosen to fail", "NaN at step 312", "train the yardstick", "321"):
        assert part in text
    assert all(f"**{COLUMNS[name][0]}**" in text for name in report.rows[0].measurement.metrics)
    assert str(torch.get_num_threads()) in text
    assert torch.__version__ in text
    widths = [line.count("|") - line.count("\\|") for line in lines if line.startswith("|")]
    assert len(set(widths)) == 4  # four tables, each with rows of one length


def test_report_names_no_host_and_no_folder(report, tmp_path):
    host, folder = platform.node(), str(tmp_path)
    write_report(tmp_path / "new", report)
    written = sorted((tmp_path / "new").iterdir())
    assert [path.name for path in written] == ["report.json", "report.md"]
    for path in written:
        content = path.read_text(encoding="utf-8")
        assert host not in content
        assert folder not in content
        assert "/root" not in content
    write_report(tmp_path / "new", report)  # again, over the old one
    assert from_json((tmp_path / "new" / "report.json").read_text(encoding="utf-8")) == report


def test_report_refuses_equal_names_and_an_unknown_yardstick(digits, report):
    splits, classifier, references, _ = digits
    settings = {"references": references, "splits": splits, "classifier": classifier}
    with pytest.raises(ConfigError, match="two rows are called 'copies'"):
        make_report([report.rows[1], report.rows[1]], **settings)
    with pytest.raises(ConfigError, match="not among the rows"):
        make_report([report.rows[1]], yardstick="flow", **settings)


# Pictures


def test_pictures_are_drawn_without_pyplot(tmp_path):
    pytest.importorskip("matplotlib")
    from onestep_adapters.metrics import plots

    images, labels = torch.rand(30, 1, 8, 8, generator=generator()) * 2 - 1, torch.arange(30) % 10
    sets = {"one": images, "two": images[:7]}
    grid = plots.image_grid(images, sets, real_labels=labels, labels={"one": labels}, title="t")
    lines = plots.curves({"a": [(0, 1.0), (10, 0.1)], "b": [(0, 1.0), (10, 0.11)]}, floor=0.01, title="t")
    many = {f"method {i}": [(0, 1.0), (10, 0.1 + i)] for i in range(len(plots.PALETTE) + 1)}
    panels = plots.curves(many, floor=0.01, title="t")
    assert [axes.texts[0].get_text() for axes in panels.get_axes()] == list(many)
    dots = plots.toy_scatter(normal(99, 2), {"a": normal(99, 2) * 3, "b": normal(9, 2)}, captions={"a": "score 1"})
    for i, figure in enumerate((grid, lines, panels, dots)):
        figure.savefig(tmp_path / f"{i}.png")
        assert (tmp_path / f"{i}.png").stat().st_size > 3000
    assert "matplotlib.pyplot" not in sys.modules
    with pytest.raises(ConfigError, match="like the real ones"):
        plots.image_grid(images, {"a": images[:, :, :4]})
    with pytest.raises(ConfigError, match="one label per image"):
        plots.image_grid(images, {"a": images}, labels={"a": labels[:3]})
    with pytest.raises(ConfigError, match="at least one"):
        plots.curves({})
    with pytest.raises(ConfigError, match="2"):
        plots.toy_scatter(normal(9, 3), {"a": normal(9, 2)})


def test_metrics_import_no_extra():
    extras = ("matplotlib", "sklearn", "scipy")
    code = f"import sys, onestep_adapters.metrics; print([m for m in {extras} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_a_missing_matplotlib_names_the_extra():
    code = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "from onestep_core.errors import MissingExtraError\n"
        "try: import onestep_adapters.metrics.plots\n"
        "except MissingExtraError as e: print(e)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'onestep[plots]'" in found.stdout
