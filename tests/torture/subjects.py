"""Every reader of files."""

from __future__ import annotations

from torture.image_subjects import IMAGES
from torture.pt_subjects import PT
from torture.run_subjects import RUNS
from torture.subject import Subject

SUBJECTS: dict[str, Subject] = {**RUNS, **PT, **IMAGES}
"""By name."""
