"""Images, list files, the protocols of the literature, splits and samplers."""

from hybridhash.data.images import IMAGE_ENDINGS, TarImages, read_image, to_rgb
from hybridhash.data.labelled import LabelledImages, cifar10, digits
from hybridhash.data.lists import ImageList, check_disjoint, read_csv
from hybridhash.data.protocols import (
    Protocol,
    describe_protocols,
    get_protocol,
    list_protocols,
    own_protocol,
)
from hybridhash.data.sampling import balanced_batches
from hybridhash.data.splits import Parts, Split

__all__ = [
    "IMAGE_ENDINGS",
    "ImageList",
    "LabelledImages",
    "Parts",
    "Protocol",
    "Split",
    "TarImages",
    "balanced_batches",
    "check_disjoint",
    "cifar10",
    "describe_protocols",
    "digits",
    "get_protocol",
    "list_protocols",
    "own_protocol",
    "read_csv",
    "read_image",
    "to_rgb",
]
