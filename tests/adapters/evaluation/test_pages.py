"""Reports as HTML: nothing outside of the file, everything escaped, and no overflow in a browser."""

import html
import re
import shutil
import struct
import subprocess
import zlib

import pytest

from onestep_adapters.evaluation import Comparison, Row, make_report
from onestep_adapters.evaluation.pages import Column, Page, Picture, Section, Table, Value, to_text
from onestep_adapters.evaluation.pages.html import to_html, write_html
from onestep_adapters.evaluation.pages.of_report import page_of
from onestep_adapters.evaluation.point_criteria import point_references
from onestep_adapters.metrics import Estimate

BROWSER = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), ""
)


def png(width, height):
    """A grey picture."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + b"\x80" * width for _ in range(height))
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def wide_page():
    """A page with everything that may be too wide: a long word, many columns, a large picture."""
    columns = [Column("method"), *(Column(f"heading {i}", f"meaning {i}") for i in range(20))]
    rows = [[Value("a-long-name-of-a-method"), *(Value(f"{i}.5", i) for i in range(20))] for _ in range(3)]
    return Page(
        "Title",
        "Opening " + 80 * "x",
        ["**first** line " + 120 * "y", "<b>not markup</b>"],
        [
            Section("Numbers", ["Text."], pictures=[Picture("A picture", "a.png", png(3000, 200))],
                    tables=[Table(columns, rows), Table(columns, rows, title="More", folded=True)]),
            Section("Folded", lines=["option " + 100 * "z"], folded=True),
        ],
        {"cpu": "a long name of a processor " * 4},
    )  # fmt: skip


def report():
    scores = {"flow-matching": Estimate(0.01, 0.001), "meanflow": Estimate(0.05, 0.002)}
    return make_report(
        [Row(name, {"score": score}, draws=5, options={"training.steps": 3}) for name, score in scores.items()],
        kind="points",
        data="8gaussians",
        comparison=Comparison("fresh draws", 10_000),
        references=point_references(0.0, 0.1),
        baseline="flow-matching",
    )


def test_a_page_needs_nothing_outside():
    text = to_html(wide_page())
    assert not re.findall(r'(?:src|href)="(?!data:)', text)
    assert "@import" not in text
    assert "url(" not in text
    assert text.count("data:image/png;base64,") == 1


def test_text_is_escaped_and_bold_is_bold():
    text = to_html(wide_page())
    assert "&lt;b&gt;not markup&lt;/b&gt;" in text
    assert "<b>first</b> line" in text


def test_every_heading_with_a_meaning_has_a_tooltip_and_a_definition():
    text = to_html(wide_page())
    for i in range(20):
        assert f'title="meaning {i}"' in text
        assert f"<dt>heading {i}</dt><dd>meaning {i}</dd>" in text


def test_the_page_of_a_report_has_its_numbers_and_verdicts():
    found = page_of(report())
    text = html.unescape(to_html(found))
    assert "miss: score 0.0500" in text or "miss (1 of 2 thresholds)" in text
    assert 'data-order="0.05"' in text
    assert "0.0500 ± 0.0020" in text
    assert "training.steps 3" in text
    assert "## Results" in to_text(found)


@pytest.mark.skipif(not BROWSER, reason="no browser: install one with apt-get install chromium")
@pytest.mark.parametrize("width", [390, 1280])
def test_a_page_fits_the_window_and_shows_its_pictures(width, tmp_path):
    """A page that loads ours in a frame of the width and says what it measured in its title."""
    write_html(tmp_path, wide_page())
    (tmp_path / "frame.html").write_text(
        f"""<iframe id=f src=report.html style="width:{width}px;height:900px;border:0"></iframe><script>
        f.onload = () => {{
          const d = f.contentDocument;
          d.querySelectorAll("details").forEach(e => e.open = true);
          const broken = [...d.images].filter(i => !i.complete || i.naturalWidth === 0).length;
          document.body.append(`MEASURED ${{d.documentElement.scrollWidth}} ${{f.clientWidth}} ${{broken}} `
            + `${{d.images.length}}`);
        }};</script>"""
    )
    command = [
        BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files",
        "--virtual-time-budget=5000", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom",
        (tmp_path / "frame.html").as_uri(),
    ]  # fmt: skip
    told = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    scroll, client, broken, images = map(int, re.search(r"MEASURED (\d+) (\d+) (\d+) (\d+)", told).groups())
    assert scroll <= client == width
    assert broken == 0
    assert images == 1


def test_sorting_in_the_browser_is_by_numbers():
    """The script sorts by ``data-order``; cells without a number come after those with one."""
    text = to_html(wide_page())
    assert "Number(o)" in text
    assert text.count("data-order=") == 2 * 3 * 20
