"""Hash features without a network: features in, codes out."""

from hybridhash.shallow.itqcca import ITQCCA
from hybridhash.shallow.ksh import KSH
from hybridhash.shallow.sdh import SDH
from hybridhash.shallow.unsupervised import itq_rotation

__all__ = ["ITQCCA", "KSH", "SDH", "itq_rotation"]
