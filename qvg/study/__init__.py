"""The 33 methods of arXiv 2603.27469 as parts that fit together: cores (`codec/core.py`), tiers by age, importance, retention,
foreground masks; each as published, to compare with, and corrected, by the rules of our cache."""

from .cache import StudyCache
from .method import Coding, Foreground, Retention, StudyMethod, Tier
from .published import PublishedCache
from .registry import STUDY, study_method
from .reuse import ReusingDenoiser
from .run import make_cache

__all__ = [
    "STUDY",
    "Coding",
    "Foreground",
    "PublishedCache",
    "Retention",
    "ReusingDenoiser",
    "StudyCache",
    "StudyMethod",
    "Tier",
    "make_cache",
    "study_method",
]
