"""The stateless losses as functions; each class of :mod:`hybridhash.losses` holds the settings of one."""

from hybridhash.losses.distance import dch_loss, dsh_loss
from hybridhash.losses.pairwise import dhn_loss, dpsh_loss, hashnet_loss, idhn_loss
from hybridhash.losses.wml import wml_loss

__all__ = ["dch_loss", "dhn_loss", "dpsh_loss", "dsh_loss", "hashnet_loss", "idhn_loss", "wml_loss"]
