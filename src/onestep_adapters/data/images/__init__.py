"""Images as data sets: folders, IDX files, Hugging Face data sets, Fashion-MNIST, latents of an autoencoder.

:func:`~onestep_adapters.data.open_dataset` opens them by ``folder:PATH``, ``idx:PATH``, ``hub:NAME`` and
``fashion-mnist``. Arrays of your own: :class:`ImageDataset`.
"""

from onestep_adapters.data.images.cache import cache_home as cache_home
from onestep_adapters.data.images.dataset import ImageDataset as ImageDataset
from onestep_adapters.data.images.latents import LatentDataset as LatentDataset
from onestep_adapters.data.images.options import ImageOptions as ImageOptions
from onestep_adapters.data.images.source import CorruptFilesError as CorruptFilesError
