"""Losses that train hash codes: ``loss(codes, labels, *, indices=None, ref_codes=None, ref_labels=None)``."""

from hybridhash._moved import moved
from hybridhash.losses import functional
from hybridhash.losses.adsh import ADSHLoss
from hybridhash.losses.bank import CodeBank, CodeQueue
from hybridhash.losses.centers import hash_centers, minimum_distance, target_distance
from hybridhash.losses.cnnh import CNNHLoss, cnnh_codes, cnnh_objective
from hybridhash.losses.contrastive import ContrastiveLoss
from hybridhash.losses.csq import CSQLoss
from hybridhash.losses.dbdh import DBDHLoss
from hybridhash.losses.dch import DCHLoss
from hybridhash.losses.dfh import DFHLoss
from hybridhash.losses.dh import DHLoss
from hybridhash.losses.dhn import DHNLoss
from hybridhash.losses.dlbhc import DLBHCLoss
from hybridhash.losses.dnnh import DNNHLoss
from hybridhash.losses.dpn import DPNLoss
from hybridhash.losses.dpsh import DPSHLoss
from hybridhash.losses.drsdh import DRSDHLoss
from hybridhash.losses.dsdh import DSDHLoss
from hybridhash.losses.dsh import DSHLoss
from hybridhash.losses.dshsd import DSHSDLoss
from hybridhash.losses.dsrh import DSRHLoss
from hybridhash.losses.dtsh import DTSHLoss
from hybridhash.losses.greedyhash import GreedyHashLoss
from hybridhash.losses.hashnet import HashNetLoss
from hybridhash.losses.hyp2 import HyP2Loss
from hybridhash.losses.idhn import IDHNLoss
from hybridhash.losses.lcdsh import LCDSHLoss
from hybridhash.losses.mdshc import MDSHCLoss
from hybridhash.losses.nested import NestedLoss
from hybridhash.losses.orthohash import OrthoHashLoss
from hybridhash.losses.pairwise import (
    PairwiseLoss,
    balanced,
    cosines,
    log_likelihood,
    squared_distances,
    uniform,
)
from hybridhash.losses.registry import create_loss, create_loss_for, list_losses
from hybridhash.losses.regularizers import (
    balance_penalty,
    bihalf_penalty,
    coding_rate_penalty,
    decorrelation_penalty,
    koleo_penalty,
)
from hybridhash.losses.sum_of_losses import SumOfLosses
from hybridhash.losses.superviseddh import SupervisedDHLoss
from hybridhash.losses.tieawareap import TieAwareAPLoss
from hybridhash.losses.tieawarendcg import TieAwareNDCGLoss
from hybridhash.losses.wml import WMLLoss

__all__ = [
    "ADSHLoss",
    "CNNHLoss",
    "CSQLoss",
    "CodeBank",
    "CodeQueue",
    "ContrastiveLoss",
    "DBDHLoss",
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
    "DSHSDLoss",
    "DSRHLoss",
    "DTSHLoss",
    "GreedyHashLoss",
    "HashNetLoss",
    "HyP2Loss",
    "IDHNLoss",
    "LCDSHLoss",
    "MDSHCLoss",
    "NestedLoss",
    "OrthoHashLoss",
    "PairwiseLoss",
    "SumOfLosses",
    "SupervisedDHLoss",
    "TieAwareAPLoss",
    "TieAwareNDCGLoss",
    "WMLLoss",
    "balance_penalty",
    "balanced",
    "bihalf_penalty",
    "cnnh_codes",
    "cnnh_objective",
    "coding_rate_penalty",
    "cosines",
    "create_loss",
    "create_loss_for",
    "decorrelation_penalty",
    "functional",
    "hash_centers",
    "koleo_penalty",
    "list_losses",
    "log_likelihood",
    "minimum_distance",
    "squared_distances",
    "target_distance",
    "uniform",
]

__getattr__ = moved(__name__, {"balanced_batches": "hybridhash.data.balanced_batches"})
