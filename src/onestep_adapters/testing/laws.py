"""Laws are data: each function here returns a list of named callables, the claims given as keywords.

    @pytest.mark.parametrize("law", laws.distance(my_distance, symmetric=False), ids=str)
    def test_my_distance(law):
        law()

A claim that is not made is not checked; a law that fails names itself and shows the numbers.
"""

from onestep_adapters.testing.field_laws import coupling as coupling
from onestep_adapters.testing.field_laws import field as field
from onestep_adapters.testing.field_laws import kernel as kernel
from onestep_adapters.testing.flow_laws import average_velocity as average_velocity
from onestep_adapters.testing.flow_laws import derivative as derivative
from onestep_adapters.testing.flow_laws import path as path
from onestep_adapters.testing.flow_laws import preconditioning as preconditioning
from onestep_adapters.testing.objective_laws import distance as distance
from onestep_adapters.testing.objective_laws import objective as objective
