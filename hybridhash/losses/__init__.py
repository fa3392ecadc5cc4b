"""Losses that train hash codes: ``loss(codes, labels, *, indices=None, ref_codes=None, ref_labels=None)``."""

from hybridhash._moved import moved
from hybridhash.losses import functional
from hybridhash.losses.asymmetric import ADSHLoss
from hybridhash.losses.bank import CodeBank
from hybridhash.losses.centers import hash_centers, minimum_distance, target_distance
from hybridhash.losses.central import CSQLoss, DPNLoss
from hybridhash.losses.classification import DLBHCLoss, GreedyHashLoss
from hybridhash.losses.cosine import OrthoHashLoss
from hybridhash.losses.dch import DCHLoss
from hybridhash.losses.dfh import DFHLoss
from hybridhash.losses.dhn import DHNLoss
from hybridhash.losses.dpsh import DPSHLoss
from hybridhash.losses.dsdh import DSDHLoss
from hybridhash.losses.dsh import DSHLoss
from hybridhash.losses.for_data import create_loss_for
from hybridhash.losses.hashnet import HashNetLoss
from hybridhash.losses.idhn import IDHNLoss
from hybridhash.losses.mdshc import MDSHCLoss
from hybridhash.losses.pairwise import (
    PairwiseLoss,
    balanced,
    cosines,
    log_likelihood,
    squared_distances,
    uniform,
)
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
    "PairwiseLoss",
    "SupervisedDHLoss",
    "TieAwareAPLoss",
    "TieAwareNDCGLoss",
    "WMLLoss",
    "balanced",
    "cnnh_codes",
    "cnnh_objective",
    "cosines",
    "create_loss",
    "create_loss_for",
    "functional",
    "hash_centers",
    "list_losses",
    "log_likelihood",
    "minimum_distance",
    "squared_distances",
    "target_distance",
    "uniform",
]

__getattr__ = moved(__name__, {"balanced_batches": "hybridhash.data.balanced_batches"})
