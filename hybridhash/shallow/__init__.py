"""Features in, codes out, without a network."""

from hybridhash.shallow.supervised import ITQCCA, KSH, SDH
from hybridhash.shallow.unsupervised import itq_rotation

__all__ = ["ITQCCA", "KSH", "SDH", "itq_rotation"]
