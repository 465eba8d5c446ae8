"""The demo in one process and in two."""

from onestep_adapters.evaluation.demo import Demo
from onestep_adapters.tracking import Phase


def test_the_demo_trains_the_same_in_one_process_and_in_two(tmp_path, monkeypatch):
    losses = []
    for processes in (1, 2):
        monkeypatch.setenv("ONESTEP_TEACHERS", str(tmp_path / f"teachers-{processes}"))
        demo = Demo(tmp_path / str(processes), steps=2)
        titles, given = [], []

        def track(items, title, total, titles=titles):
            titles.append(title)
            return iter(items)

        for name, item in demo.train(processes=processes, track=track):
            given.append((name, item))
            if isinstance(item, Phase):
                titles.append(f"{name}: {item.title}")
        assert "rectified-meanflow: pairs of the teacher" in titles
        seen = [name for name, item in given if not isinstance(item, Phase)]
        assert {name: seen.count(name) for name in demo.runs} == dict.fromkeys(demo.runs, 2)
        assert all(run.finished for run in demo.runs.values())
        assert not list(Demo(tmp_path / str(processes), steps=2).train(processes=processes))
        losses.append({name: run.state.history[-1]["loss"] for name, run in demo.runs.items()})
    assert losses[0] == losses[1]
