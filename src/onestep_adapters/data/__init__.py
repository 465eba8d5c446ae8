"""Data sets: 2-D toys, tensors, digits, images of your own; queues of samples; couplings of data and noise.

:func:`open_dataset` opens a data set by name. The digits (:mod:`onestep_adapters.data.digits`) need scikit-learn.
"""

from onestep_adapters.data.arrays import ArrayDataset as ArrayDataset
from onestep_adapters.data.couplings import Coupling as Coupling
from onestep_adapters.data.couplings import Draw as Draw
from onestep_adapters.data.couplings import Draws as Draws
from onestep_adapters.data.couplings import average_velocity_at as average_velocity_at
from onestep_adapters.data.couplings import states_at as states_at
from onestep_adapters.data.couplings import velocity_at as velocity_at
from onestep_adapters.data.dataset import Batch as Batch
from onestep_adapters.data.dataset import Dataset as Dataset
from onestep_adapters.data.dataset import Modes as Modes
from onestep_adapters.data.dataset import part_of as part_of
from onestep_adapters.data.dataset import source_of as source_of
from onestep_adapters.data.images.dataset import ImageDataset as ImageDataset
from onestep_adapters.data.images.latents import LatentDataset as LatentDataset
from onestep_adapters.data.images.options import ImageOptions as ImageOptions
from onestep_adapters.data.queue import SampleQueue as SampleQueue
from onestep_adapters.data.registry import DATASETS as DATASETS
from onestep_adapters.data.registry import DEFAULT_DATASET as DEFAULT_DATASET
from onestep_adapters.data.registry import IMAGES as IMAGES
from onestep_adapters.data.registry import open_dataset as open_dataset
from onestep_adapters.data.toys import TOYS as TOYS
from onestep_adapters.data.toys import Checkerboard as Checkerboard
from onestep_adapters.data.toys import EightGaussians as EightGaussians
from onestep_adapters.data.toys import SwissRoll as SwissRoll
from onestep_adapters.data.toys import ToyDataset as ToyDataset
from onestep_adapters.data.toys import TwoMoons as TwoMoons
from onestep_adapters.data.toys import UnequalMixture as UnequalMixture
