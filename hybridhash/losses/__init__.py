"""Losses that train hash codes: ``loss(codes, labels, *, indices=None, ref_codes=None, ref_labels=None)``."""

from hybridhash._moved import moved
from hybridhash.losses import functional
from hybridhash.losses.asymmetric import ADSHLoss
from hybridhash.losses.bank import CodeBank
from hybridhash.losses.centers import hash_centers, minimum_distance, target_distance
from hybridhash.losses.central import CSQLoss, DPNLoss
from hybridhash.losses.classification import DLBHCLoss, GreedyHashLoss
from hybridhash.losses.cosine import MDSHCLoss, OrthoHashLoss
from hybridhash.losses.discrete import DFHLoss, DSDHLoss
from hybridhash.losses.distance import DCHLoss, DSHLoss
from hybridhash.losses.for_data import create_loss_for
from hybridhash.losses.pairwise import DHNLoss, DPSHLoss, HashNetLoss, IDHNLoss
from hybridhash.losses.ranking import TieAwareAPLoss, TieAwareNDCGLoss
from hybridhash.losses.registry import create_loss, list_losses
from hybridhash.losses.triplet import DNNHLoss, DRSDHLoss, DSRHLoss, DTSHLoss
from hybridhash.losses.two_stage import CNNHLoss, cnnh_codes, cnnh_objective
from hybridhash.losses.unsupervised import DHLoss, SupervisedDHLoss
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
