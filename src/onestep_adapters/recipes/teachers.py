"""Teachers: flow-matching runs that others learn from, trained once for every data set and choice of options.

A teacher's folder is named by a hash of what made it, so a changed option is another teacher, and one that was cut off
goes on where it stopped.
"""

import hashlib
import json
import os
from pathlib import Path

import attrs

from onestep_adapters.recipes.flow_matching import FlowMatching

TEACHERS = Path("runs/teachers")
"""Where teachers are kept, below the current folder; the environment variable ``ONESTEP_TEACHERS`` names another."""


def teacher_folder(data: str, options: FlowMatching) -> Path:
    """The folder of a teacher: ``DATA-HASH``.

    Args:
        data: name of the problem.
        options: of the teacher's training; how it is sampled is no part of the name.

    Example:
        >>> one, other = (teacher_folder("digits", FlowMatching(sampling_steps=n)) for n in (10, 50))
        >>> one == other
        True
    """
    made = {name: value for name, value in attrs.asdict(options).items() if name != "sampling_steps"}
    text = json.dumps([data, made], sort_keys=True)
    home = Path(os.environ.get("ONESTEP_TEACHERS", TEACHERS))
    return home / f"{data}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
