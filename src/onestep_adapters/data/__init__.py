"""Data: laws in the plane, queues of samples; real digits in :mod:`onestep_adapters.data.digits`, an extra."""

from onestep_adapters.data.queue import SampleQueue as SampleQueue
from onestep_adapters.data.toys import TOYS as TOYS
from onestep_adapters.data.toys import Checkerboard as Checkerboard
from onestep_adapters.data.toys import EightGaussians as EightGaussians
from onestep_adapters.data.toys import SwissRoll as SwissRoll
from onestep_adapters.data.toys import TwoMoons as TwoMoons
from onestep_adapters.data.toys import UnequalMixture as UnequalMixture
