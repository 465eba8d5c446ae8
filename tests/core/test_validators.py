"""Validators: what each accepts and refuses, and that the message names the field and the value."""

import math

import attrs
import pytest

from onestep_core.errors import ConfigError
from onestep_core.validators import (
    at_least_and_below,
    count,
    finite,
    not_negative,
    open_share,
    positive,
    require_positive,
    share,
)

NAN, INFINITE = math.nan, math.inf
CASES = {
    "positive": (positive, [1e-300, 1, 3.5], [0, -1.0, NAN, INFINITE]),
    "not_negative": (not_negative, [0, 0.0, 7], [-1e-300, NAN, INFINITE]),
    "finite": (finite, [-3.0, 0, 1e300], [NAN, INFINITE, -INFINITE]),
    "count": (count, [0, 1, 2**63 - 1], [-1, 2**63, 1.0, True, NAN]),
    "share": (share, [0, 0.5, 1], [-0.1, 1.1, NAN]),
    "open_share": (open_share, [0.1, 0.9], [0, 1, NAN]),
    "at_least_and_below": (at_least_and_below(0.25, 1.0), [0.25, 0.9], [0.2, 1.0, NAN]),
}


@pytest.mark.parametrize(("validator", "good", "bad"), CASES.values(), ids=CASES)
def test_a_validator_accepts_and_refuses(validator, good, bad):
    options = attrs.make_class("Options", {"number": attrs.field(validator=validator)})
    for value in good:
        assert options(value).number == value
    for value in bad:
        with pytest.raises(ConfigError, match="number = "):
            options(value)


def test_an_argument_is_refused_by_its_name():
    require_positive("epsilon", 0.1)
    for value in (0.0, -1.0, NAN):
        with pytest.raises(ConfigError, match="epsilon = "):
            require_positive("epsilon", value)
