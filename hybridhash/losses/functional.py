"""The stateless losses as functions; each class of :mod:`hybridhash.losses` holds the settings of one."""

from hybridhash.losses.wml import wml_loss

__all__ = ["wml_loss"]
