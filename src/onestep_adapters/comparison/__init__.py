"""Comparison of methods at equal budgets: ``onestep compare``."""

from onestep_adapters.comparison.budget import Spent as Spent
from onestep_adapters.comparison.budget import spent as spent
from onestep_adapters.comparison.budget import within_budget as within_budget
from onestep_adapters.comparison.grid import Progress as Progress
from onestep_adapters.comparison.grid import missing as missing
from onestep_adapters.comparison.grid import results as results
from onestep_adapters.comparison.grid import work as work
from onestep_adapters.comparison.plan import SCALES as SCALES
from onestep_adapters.comparison.plan import Cell as Cell
from onestep_adapters.comparison.plan import Plan as Plan
from onestep_adapters.comparison.plan import Scale as Scale
from onestep_adapters.comparison.plan import make_plan as make_plan
