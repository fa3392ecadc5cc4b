"""The stateless losses as functions; each class of :mod:`hybridhash.losses` holds the settings of one."""

from hybridhash.losses.central import csq_loss, dpn_loss
from hybridhash.losses.classification import dlbhc_loss, greedyhash_loss
from hybridhash.losses.cosine import orthohash_loss
from hybridhash.losses.dch import dch_loss
from hybridhash.losses.dhn import dhn_loss
from hybridhash.losses.dpsh import dpsh_loss
from hybridhash.losses.dsh import dsh_loss
from hybridhash.losses.hashnet import hashnet_loss
from hybridhash.losses.idhn import idhn_loss
from hybridhash.losses.mdshc import mdshc_loss
from hybridhash.losses.ranking import tie_aware_ap_loss, tie_aware_ndcg_loss
from hybridhash.losses.triplet import dnnh_loss, drsdh_loss, dsrh_loss, dtsh_loss
from hybridhash.losses.unsupervised import dh_loss, supervised_dh_loss
from hybridhash.losses.wml import wml_loss

__all__ = [
    "csq_loss",
    "dch_loss",
    "dh_loss",
    "dhn_loss",
    "dlbhc_loss",
    "dnnh_loss",
    "dpn_loss",
    "dpsh_loss",
    "drsdh_loss",
    "dsh_loss",
    "dsrh_loss",
    "dtsh_loss",
    "greedyhash_loss",
    "hashnet_loss",
    "idhn_loss",
    "mdshc_loss",
    "orthohash_loss",
    "supervised_dh_loss",
    "tie_aware_ap_loss",
    "tie_aware_ndcg_loss",
    "wml_loss",
]
