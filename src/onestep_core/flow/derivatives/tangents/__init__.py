"""How tangents move: duals, rules, and what runs without one."""

from onestep_core.flow.derivatives.tangents import attention, elementwise, norms, products, structure, views

RULES_LOADED = (attention, elementwise, norms, products, structure, views)
"""The rooms of the rules, which are in the table once they are imported."""
