"""Networks and fragments that ``single_pass`` is tested on; each file is a kind."""

from tests.core.flow.derivatives.case import ZOO as ZOO
from tests.core.flow.derivatives.zoo import activations as activations
from tests.core.flow.derivatives.zoo import attention as attention
from tests.core.flow.derivatives.zoo import backbones as backbones
from tests.core.flow.derivatives.zoo import convolutions as convolutions
from tests.core.flow.derivatives.zoo import indexing as indexing
from tests.core.flow.derivatives.zoo import libraries as libraries
from tests.core.flow.derivatives.zoo import norms as norms
from tests.core.flow.derivatives.zoo import products as products
from tests.core.flow.derivatives.zoo import python as python
from tests.core.flow.derivatives.zoo import recurrent as recurrent
from tests.core.flow.derivatives.zoo import reductions as reductions
from tests.core.flow.derivatives.zoo import views as views
