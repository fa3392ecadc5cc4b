"""Hash features without a network: features in, codes out."""

from hybridhash.shallow.supervised import ITQCCA, KSH, SDH
from hybridhash.shallow.unsupervised import itq_rotation

__all__ = ["ITQCCA", "KSH", "SDH", "itq_rotation"]
