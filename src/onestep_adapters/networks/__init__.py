"""Networks of your own as the plain callables that the core takes.

The core calls ``network(z, *times)``. It knows no modules and no conditions. A few small wrappers stand between it and
an ``nn.Module``; apply them in this order:

1. :func:`frozen` (teachers, EMA copies): gradients reach the input, never a parameter. :func:`shared_dropout`: two
   evaluations with the same masks.
2. :func:`with_condition`: binds labels, text, guidance strengths.
3. :func:`as_velocity`, :func:`as_average_velocity`, :func:`as_flow_map`: say what the output means. They convert the
   unit of time, pick the tensor from the output, and check its shape.
4. :func:`as_one_step`: makes an average velocity a generator of one evaluation.

:func:`count_calls` can wrap any callable and counts evaluations. The core converts other conventions of time arguments
(``flow.from_duration``, ``from_reversed``, ``from_log_step``) and other meanings of the output
(``flow.velocity_from_denoiser``, ``flow.average_velocity_from_flow_map``).

No wrapper copies a parameter, switches a module between training and evaluation mode, or enters ``no_grad``.
"""

from onestep_adapters.networks.callables import as_average_velocity as as_average_velocity
from onestep_adapters.networks.callables import as_flow_map as as_flow_map
from onestep_adapters.networks.callables import as_one_step as as_one_step
from onestep_adapters.networks.callables import as_velocity as as_velocity
from onestep_adapters.networks.callables import with_condition as with_condition
from onestep_adapters.networks.counting import Counted as Counted
from onestep_adapters.networks.counting import count_calls as count_calls
from onestep_adapters.networks.dropout import shared_dropout as shared_dropout
from onestep_adapters.networks.frozen import frozen as frozen
