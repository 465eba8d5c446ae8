"""The project's own kernels, couplings, fields, paths, derivatives, distances and objectives obey the laws."""

import os

import pytest

from onestep_adapters.testing import Law
from tests.cases import project_laws

LAWS = project_laws()


@pytest.mark.parametrize("law", [law for _, law in LAWS], ids=[name for name, _ in LAWS])
def test_law(law: Law):
    law()


@pytest.mark.thorough
@pytest.mark.parametrize("law", [law for _, law in LAWS], ids=[name for name, _ in LAWS])
def test_law_on_many_cases(law: Law, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ONESTEP_LAW_EXAMPLES", os.environ.get("ONESTEP_LAW_EXAMPLES", "2000"))
    law()
