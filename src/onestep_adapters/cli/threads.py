"""How torch's threads wait, decided before torch is loaded: this module is imported first and imports nothing of it.

By default the threads of a parallel region spin while they wait for one another. With small networks and another busy
process on the machine, that makes an update twenty times slower than one thread alone; asleep, they lose little.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
