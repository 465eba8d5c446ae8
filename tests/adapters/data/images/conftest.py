"""Caches of the tests."""

import pytest


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """An empty folder of caches, for one test."""
    monkeypatch.setenv("ONESTEP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"
