"""The display of a training on a narrow terminal."""

import io
from types import SimpleNamespace

import pytest
from rich.console import Console

from onestep_adapters.cli import progress as display


@pytest.mark.parametrize("width", [60, 80, 110])
def test_bar_count_and_remaining_time_stay_visible_beside_many_numbers(width, monkeypatch):
    shown = Console(file=io.StringIO(), force_terminal=True, width=width, highlight=False)
    monkeypatch.setattr(display, "console", shown)
    logs = {f"a long name of a number {i}": i / 7 for i in range(12)}
    records = (SimpleNamespace(step=step, loss=0.5, logs=logs) for step in range(1, 6))
    list(display.progress(records, done=0, total=5, title="drifting on digits"))
    text = shown.file.getvalue()
    assert "5/5" in text
    assert "━" in text
    assert "0:00:0" in text
    assert "loss 0.5" in text
    assert "drifting on digits" in text
