"""Losses that train hash codes: ``loss(codes, labels, *, indices=None, ref_codes=None, ref_labels=None)``."""

from hybridhash._moved import moved
from hybridhash.losses import functional
from hybridhash.losses.adsh import ADSHLoss
from hybridhash.losses.bank import CodeBank
from hybridhash.losses.centers import hash_centers, minimum_distance, target_distance
from hybridhash.losses.cnnh import CNNHLoss, cnnh_codes, cnnh_objective
from hybridhash.losses.cosine import MDSHCLoss
from hybridhash.losses.csq import CSQLoss
from hybridhash.losses.dh import DHLoss
from hybridhash.losses.discrete import DFHLoss, DSDHLoss
from hybridhash.losses.distance import DCHLoss, DSHLoss
from hybridhash.losses.dlbhc import DLBHCLoss
from hybridhash.losses.dnnh import DNNHLoss
from hybridhash.losses.dpn import DPNLoss
from hybridhash.losses.drsdh import DRSDHLoss
from hybridhash.losses.dsrh import DSRHLoss
from hybridhash.losses.dtsh import DTSHLoss
from hybridhash.losses.greedyhash import GreedyHashLoss
from hybridhash.losses.orthohash import OrthoHashLoss
from hybridhash.losses.pairwise import DHNLoss, DPSHLoss, HashNetLoss, IDHNLoss
from hybridhash.losses.registry import create_loss, create_loss_for, list_losses
from hybridhash.losses.superviseddh import SupervisedDHLoss
from hybridhash.losses.tieawareap import TieAwareAPLoss
from hybridhash.losses.tieawarendcg import TieAwareNDCGLoss
from hybridhash.losses.wml import WMLLoss

__all__ = [
    "ADSHLoss",
    "CNNHLoss",
    "CSQLoss",
    "CodeBank",
    "DCHLoss",
    "DFHLoss",
    "DHLoss",
    "DHNLoss",
    "DLBHCLoss",
    "DNNHLoss",
    "DPNLoss",
    "DPSHLoss",
    "DRSDHLoss",
    "DSDHLoss",
    "DSHLoss",
    "DSRHLoss",
    "DTSHLoss",
    "GreedyHashLoss",
    "HashNetLoss",
    "IDHNLoss",
    "MDSHCLoss",
    "OrthoHashLoss",
    "SupervisedDHLoss",
    "TieAwareAPLoss",
    "TieAwareNDCGLoss",
    "WMLLoss",
    "cnnh_codes",
    "cnnh_objective",
    "create_loss",
    "create_loss_for",
    "functional",
    "hash_centers",
    "list_losses",
    "minimum_distance",
    "target_distance",
]

__getattr__ = moved(__name__, {"balanced_batches": "hybridhash.data.balanced_batches"})
