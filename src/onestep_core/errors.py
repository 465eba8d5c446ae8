"""What can go wrong, by name.

Every error says what came, what was expected and what to do. Wrong shapes and dtypes are reported by
jaxtyping (``jaxtyping.TypeCheckError``), which names the axes.
"""


class OneStepError(Exception):
    """Base of the errors that this library raises itself."""


class ConfigError(OneStepError, ValueError):
    """A value chosen by the caller that cannot work: a range, a count, a name."""


class MissingExtraError(OneStepError, ImportError):
    """An optional library is absent; the message names the pip extra that brings it."""


class NumericalWarning(UserWarning):
    """The result is finite but less exact than asked for."""


class PerformanceWarning(UserWarning):
    """The result is right but was computed in a slow or memory-hungry way."""
