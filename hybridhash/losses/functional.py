"""The stateless losses as functions; each class of :mod:`hybridhash.losses` holds the settings of one."""

from hybridhash.losses.distance import dch_loss, dsh_loss
from hybridhash.losses.pairwise import dhn_loss, dpsh_loss, hashnet_loss, idhn_loss
from hybridhash.losses.ranking import tie_aware_ap_loss, tie_aware_ndcg_loss
from hybridhash.losses.triplet import dnnh_loss, drsdh_loss, dsrh_loss, dtsh_loss
from hybridhash.losses.unsupervised import dh_loss, supervised_dh_loss
from hybridhash.losses.wml import wml_loss

__all__ = [
    "dch_loss",
    "dh_loss",
    "dhn_loss",
    "dnnh_loss",
    "dpsh_loss",
    "drsdh_loss",
    "dsh_loss",
    "dsrh_loss",
    "dtsh_loss",
    "hashnet_loss",
    "idhn_loss",
    "supervised_dh_loss",
    "tie_aware_ap_loss",
    "tie_aware_ndcg_loss",
    "wml_loss",
]
