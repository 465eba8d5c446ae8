"""Where the tests' teachers are kept."""

import pytest


@pytest.fixture(scope="session")
def teachers(tmp_path_factory):
    """The folder of small teachers, trained once for all tests that use it."""
    folder = tmp_path_factory.mktemp("teachers")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ONESTEP_TEACHERS", str(folder))
        yield folder


@pytest.fixture
def new_teachers(tmp_path, monkeypatch):
    """An empty folder of teachers, for one test."""
    monkeypatch.setenv("ONESTEP_TEACHERS", str(tmp_path / "teachers"))
    return tmp_path / "teachers"
