"""Images, list files, the protocols of the literature, splits and samplers."""

from hybridhash.data.csv_files import read_csv
from hybridhash.data.folders import ImageFiles
from hybridhash.data.images import IMAGE_ENDINGS, TarImages, read_image, to_rgb
from hybridhash.data.labelled import LabelledImages, cifar10, digits
from hybridhash.data.lists import ImageList, check_disjoint
from hybridhash.data.protocols import (
    Protocol,
    custom_protocol,
    describe_protocols,
    get_protocol,
    list_protocols,
)
from hybridhash.data.sampling import balanced_batches
from hybridhash.data.splits import Split, SplitDatasets

__all__ = [
    "IMAGE_ENDINGS",
    "ImageFiles",
    "ImageList",
    "LabelledImages",
    "Protocol",
    "Split",
    "SplitDatasets",
    "TarImages",
    "balanced_batches",
    "check_disjoint",
    "cifar10",
    "custom_protocol",
    "describe_protocols",
    "digits",
    "get_protocol",
    "list_protocols",
    "read_csv",
    "read_image",
    "to_rgb",
]
