"""The stateless losses as functions; each class of :mod:`hybridhash.losses` holds the settings of one."""

from hybridhash.losses.contrastive import contrastive_loss
from hybridhash.losses.csq import csq_loss
from hybridhash.losses.dbdh import dbdh_loss
from hybridhash.losses.dch import dch_loss
from hybridhash.losses.dh import dh_loss
from hybridhash.losses.dhn import dhn_loss
from hybridhash.losses.dlbhc import dlbhc_loss
from hybridhash.losses.dnnh import dnnh_loss
from hybridhash.losses.dpn import dpn_loss
from hybridhash.losses.dpsh import dpsh_loss
from hybridhash.losses.drsdh import drsdh_loss
from hybridhash.losses.dsh import dsh_loss
from hybridhash.losses.dshsd import dshsd_loss
from hybridhash.losses.dsrh import dsrh_loss
from hybridhash.losses.dtsh import dtsh_loss
from hybridhash.losses.greedyhash import greedyhash_loss
from hybridhash.losses.hashnet import hashnet_loss
from hybridhash.losses.hyp2 import hyp2_loss
from hybridhash.losses.idhn import idhn_loss
from hybridhash.losses.lcdsh import lcdsh_loss
from hybridhash.losses.mdshc import mdshc_loss
from hybridhash.losses.orthohash import orthohash_loss
from hybridhash.losses.superviseddh import supervised_dh_loss
from hybridhash.losses.tieawareap import tie_aware_ap_loss
from hybridhash.losses.tieawarendcg import tie_aware_ndcg_loss
from hybridhash.losses.wml import wml_loss

__all__ = [
    "contrastive_loss",
    "csq_loss",
    "dbdh_loss",
    "dch_loss",
    "dh_loss",
    "dhn_loss",
    "dlbhc_loss",
    "dnnh_loss",
    "dpn_loss",
    "dpsh_loss",
    "drsdh_loss",
    "dsh_loss",
    "dshsd_loss",
    "dsrh_loss",
    "dtsh_loss",
    "greedyhash_loss",
    "hashnet_loss",
    "hyp2_loss",
    "idhn_loss",
    "lcdsh_loss",
    "mdshc_loss",
    "orthohash_loss",
    "supervised_dh_loss",
    "tie_aware_ap_loss",
    "tie_aware_ndcg_loss",
    "wml_loss",
]
