"""The demo in one process and in two."""

from onestep_adapters.evaluation.demo import Demo


def test_the_demo_trains_the_same_in_one_process_and_in_two(tmp_path, monkeypatch):
    monkeypatch.setenv("ONESTEP_TEACHERS", str(tmp_path / "teachers"))
    losses = []
    for processes in (1, 2):
        demo = Demo(tmp_path / str(processes), steps=2)
        seen = [name for name, _ in demo.train(processes=processes)]
        assert {name: seen.count(name) for name in demo.runs} == dict.fromkeys(demo.runs, 2)
        assert all(run.finished for run in demo.runs.values())
        assert not list(Demo(tmp_path / str(processes), steps=2).train(processes=processes))
        losses.append({name: run.state.history[-1]["loss"] for name, run in demo.runs.items()})
    assert losses[0] == losses[1]
