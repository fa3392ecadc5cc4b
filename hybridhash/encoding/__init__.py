"""Images to codes: a loader in memory, or a data set of any size to shards on disk."""

from hybridhash.encoding.dataset import encode_dataset
from hybridhash.encoding.loader import encode
from hybridhash.encoding.reader import model_transform
from hybridhash.encoding.shards import open_codes, read_failures

__all__ = ["encode", "encode_dataset", "model_transform", "open_codes", "read_failures"]
