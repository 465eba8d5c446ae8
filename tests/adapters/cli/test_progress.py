"""The display of a training on a narrow terminal."""

import io
import threading
from types import SimpleNamespace

import pytest
from rich.console import Console

from onestep_adapters.cli import progress as display
from onestep_adapters.comparison import Cell, Progress
from onestep_adapters.tracking import Phase


def console(width=80):
    return Console(file=io.StringIO(), force_terminal=True, width=width, highlight=False)


@pytest.mark.parametrize("width", [60, 80, 110])
def test_bar_count_and_remaining_time_stay_visible_beside_many_numbers(width, monkeypatch):
    shown = console(width)
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


@pytest.mark.parametrize("width", [60, 80, 110])
@pytest.mark.parametrize("title", ["picture", "teacher on a-folder-of-images-1x28x28-0a1b2c3d-flip", "a: " + "b" * 99])
def test_a_long_title_leaves_bar_count_and_times_their_place(title, width, monkeypatch):
    shown = console(width)
    monkeypatch.setattr(display, "console", shown)
    assert list(display.track(range(400), title, 400)) == list(range(400))
    last = next(line for line in reversed(shown.file.getvalue().splitlines()) if "400/400" in line)
    assert "━━━━━━━━" in last
    assert last.count("0:00:0") == 2
    assert title.split()[0][:10] in last


def test_a_phase_inside_of_a_training_adds_its_bar(monkeypatch):
    """And does not open a second display, which older versions of rich refuse."""
    shown = console()
    monkeypatch.setattr(display, "console", shown)
    displays = []

    def updates():
        displays.append(list(display._shown))
        for _ in display.track(range(3), "pairs of the teacher", 3):
            displays.append(list(display._shown))
        yield SimpleNamespace(step=1, loss=0.5, logs={})

    list(display.progress(updates(), done=0, total=1, title="reflow"))
    assert len({id(bars) for shown in displays for bars in shown}) == 1
    assert display._shown == []
    text = shown.file.getvalue()
    assert "pairs of the teacher" in text
    assert "3/3" in text


@pytest.mark.parametrize("terminal", [True, False])
def test_phases_of_another_process_are_shown_and_not_passed_on(terminal, monkeypatch, capsys):
    shown = console(110)
    if terminal:
        monkeypatch.setattr(display, "console", shown)
    record = SimpleNamespace(step=1, loss=1, logs={})

    def records():
        for item in (Phase("pairs", 0, 2), Phase("pairs", 1, 2), record):
            yield "a", item
            for bars in display._shown:
                bars.refresh()

    assert list(display.progress_of_many(records(), {"a": (0, 1)})) == [("a", record)]
    text = shown.file.getvalue() if terminal else capsys.readouterr().out
    assert "pairs  0/2" in text


def test_without_a_terminal_a_slow_part_is_not_silent(monkeypatch, capsys):
    """Lines come while one part of the work is under way, whatever it takes."""
    monkeypatch.setattr(display, "SECONDS", 0.01)
    said, threads = "", threading.active_count()
    for _ in display.track(range(2), "slow", 2):
        while "slow  1/2" not in said and said.count("slow  0/2") < 3:
            said += capsys.readouterr().out
    assert said.startswith("slow  0/2\nslow  0/2  0 s\n")
    assert threading.active_count() == threads


def test_an_abandoned_phase_says_no_more(monkeypatch, capsys):
    monkeypatch.setattr(display, "SECONDS", 0.01)
    threads, items = threading.active_count(), display.track(range(5), "left", 5)
    next(items)
    assert threading.active_count() == threads + 1
    items.close()
    assert threading.active_count() == threads


def test_a_grid_shows_how_many_are_finished_and_what_runs(capsys, monkeypatch):
    monkeypatch.setattr(display, "SECONDS", -1.0)
    one, other = Cell("8gaussians", "meanflow", 0), Cell("8gaussians", "drifting", 0)
    updates = [
        Progress(one, 0, "coupled pairs 1/32"),
        Progress(other, 0),
        Progress(other, 50),
        Progress(other, 100, done=True),
        Progress(one, 100, done=True),
    ]
    assert list(display.progress_of_grid(iter(updates), cells=2, total=200)) == updates
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("0/2 trainings, 0 %")
    assert lines[0].endswith("meanflow on 8gaussians, seed 0 (coupled pairs 1/32)")
    assert "0/2 trainings, 25 %" in lines[2]
    assert "s left" in lines[2]
    assert lines[3].startswith("1/2 trainings, 50 %")
    assert lines[4].startswith("2/2 trainings, 100 %")
