"""The property suite: laws as data, for the library's own objects and for yours.

    @pytest.mark.parametrize("law", laws.field(my_field), ids=str)
    def test_my_field(law):
        law()

Needs hypothesis, not pytest. ``ONESTEP_LAW_EXAMPLES`` in the environment sets the number of cases a law draws
(10 by default; the cases are the same in every run).
"""

from onestep_core.errors import MissingExtraError

try:
    import hypothesis as _hypothesis
except ImportError as error:
    raise MissingExtraError(
        "onestep_adapters.testing draws its cases with hypothesis, which is not installed: "
        "pip install 'onestep[testing]'"
    ) from error

from onestep_adapters.testing import laws as laws
from onestep_adapters.testing import strategies as strategies
from onestep_adapters.testing.law import Law as Law
from onestep_adapters.testing.law import LawError as LawError

del _hypothesis
