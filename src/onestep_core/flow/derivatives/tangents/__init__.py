"""How tangents move: duals, rules, and what runs without one."""

# The rules are in the table once their files are imported.
from onestep_core.flow.derivatives.tangents import attention as attention
from onestep_core.flow.derivatives.tangents import elementwise as elementwise
from onestep_core.flow.derivatives.tangents import norms as norms
from onestep_core.flow.derivatives.tangents import products as products
from onestep_core.flow.derivatives.tangents import structure as structure
from onestep_core.flow.derivatives.tangents import views as views
