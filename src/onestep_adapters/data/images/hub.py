"""Data sets of the Hugging Face hub, by the library ``datasets``: by name, or from a folder on this machine.

``hub:NAME`` is what ``datasets.load_dataset`` takes, for example ``uoft-cs/cifar10`` or a folder that it knows; a
folder that ``save_to_disk`` wrote is loaded from there. The first column of images is used, and the first column of
class labels for the classes.
"""

import hashlib
import io
import os
from pathlib import Path
from typing import Any

import numpy as np

from onestep_adapters.data.dataset import SplitName
from onestep_adapters.data.images.decoding import colour_of, decoded, header
from onestep_adapters.data.images.options import ImageOptions
from onestep_adapters.data.images.source import CorruptImageError, Decoded, Source, digest_of, natural_of, stem_of
from onestep_adapters.tracking import Track
from onestep_core.errors import ConfigError, MissingExtraError

try:
    import datasets
    from PIL import Image
except ImportError as error:
    raise MissingExtraError("hub: needs the library datasets: pip install 'onestep[hub]'") from error

_SPLITS: dict[str, SplitName] = {"train": "train", "validation": "validation", "valid": "validation", "test": "test"}
_SAVED = ("dataset_dict.json", "state.json")
_PROBED = 2000
"""Number of images whose size and colour decide the defaults."""


class HubSource(Source):
    """Images of a Hugging Face data set.

    Args:
        name: of the data set, or a folder.
        options: see :class:`~onestep_adapters.data.images.options.ImageOptions`.
        by_pixels: whether the content of an image is its decoded pixels, not the bytes of its file. Then the splits are
            those of the same images in IDX files.
        stem: first part of the name of the data set.
        class_names: names of the classes; by default those of the data set.

    Raises:
        ConfigError: if it cannot be loaded, or has no images.
    """

    def __init__(
        self,
        name: str,
        options: ImageOptions,
        *,
        by_pixels: bool = False,
        stem: str = "",
        class_names: tuple[str, ...] = (),
    ) -> None:
        if options.labels:
            raise ConfigError(f"labels = {options.labels!r} with hub:{name}: its labels are one of its columns")
        colour_of(options.background)
        folder = Path(name).expanduser()
        local = folder.is_dir()
        loaded = _loaded(str(folder) if local else name)
        splits: dict[str, Any] = dict(loaded) if isinstance(loaded, datasets.DatasetDict) else {"train": loaded}
        known = {split: found for split, found in splits.items() if split in _SPLITS}
        self._sets = known or splits
        self._official = len(known) > 1
        first = next(iter(self._sets.values()))
        self._column = _first(first.features, datasets.Image)
        if self._column is None:
            raise ConfigError(f"hub:{name} has the columns {', '.join(first.features)}: expected one of images")
        self._label = _first(first.features, datasets.ClassLabel) if options.classes else None
        self.class_names = None if self._label is None else class_names or tuple(first.features[self._label].names)
        self.origin = f"hub:{folder.resolve() if local else name}"
        self.stem, self.title, self._by_pixels = stem or stem_of(Path(name).name), f"Hugging Face's {name}", by_pixels
        undecoded = datasets.Image(decode=False)
        self._raw = {split: found.cast_column(self._column, undecoded) for split, found in self._sets.items()}
        facts = [f"{split} {found._fingerprint} {len(found)}" for split, found in self._sets.items()]
        self.fingerprint = digest_of(b"hub", "\n".join([*facts, self._column, str(by_pixels)]).encode())
        self._places = [(split, row) for split, found in self._sets.items() for row in range(len(found))]
        if not self._places:
            raise ConfigError(f"hub:{name} has no image")

    def __len__(self) -> int:
        """Number of images in all splits."""
        return len(self._places)

    def name(self, index: int) -> str:
        """Split and row."""
        split, row = self._places[index]
        return f"{split} row {row}"

    def labels(self) -> np.ndarray | None:
        """The column of labels.

        Raises:
            ConfigError: if labels are missing, as in the test split of a competition.
        """
        if self._label is None:
            return None
        found = np.array([value for part in self._sets.values() for value in part[self._label]], dtype=object)
        missing = sum(value is None or value < 0 for value in found)
        if missing:
            raise ConfigError(
                f"{missing} images of {self.origin} have no class: leave the classes out with --no-classes "
                "(classes=False)"
            )
        return found.astype(np.int64)

    def parts(self) -> list[SplitName | None]:
        """The splits of the data set, if it has several."""
        return [_SPLITS[split] if self._official else None for split, _ in self._places]

    def read(self, index: int, options: ImageOptions) -> Decoded:
        """Decode one image."""
        content = self._content(index)
        found = decoded(content, options)
        if not self._by_pixels:
            return found
        with Image.open(io.BytesIO(content)) as image:
            return found._replace(digest=hashlib.sha256(np.asarray(image).tobytes()).digest())

    def natural(self, options: ImageOptions, track: Track) -> tuple[int, int]:
        """Size and channels from the headers of the first images."""
        sizes, colour = set[tuple[int, int]](), False
        probed = min(len(self), _PROBED)
        for index in track(range(probed), "sizes of images", probed):
            try:
                size, coloured = header(io.BytesIO(self._content(index)))
            except CorruptImageError:
                continue
            sizes.add(size)
            colour = colour or coloured
        return natural_of(sizes, colour)

    def _content(self, index: int) -> bytes:
        split, row = self._places[index]
        found = self._raw[split][row][self._column]
        try:
            if found["bytes"] is not None:
                return found["bytes"]
            return Path(found["path"]).read_bytes()
        except (OSError, TypeError, KeyError) as error:
            raise CorruptImageError(f"no image ({error})") from error


def _loaded(name: str) -> Any:
    """The data set of a name, or of a folder.

    Raises:
        ConfigError: with the reason of the library.
    """
    try:
        if any(Path(name, file).is_file() for file in _SAVED):
            return datasets.load_from_disk(name)
        return datasets.load_dataset(name)
    # The library raises errors of several packages for what is missing, refused or not reachable.
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:300]
        offline = " (HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE") else ""
        raise ConfigError(
            f"hub:{name} cannot be loaded{offline}: {reason}; check the name and the connection, or give a folder that "
            "save_to_disk wrote"
        ) from error


def _first(features: Any, kind: type) -> str | None:
    return next((name for name, feature in features.items() if isinstance(feature, kind)), None)
