"""Deep hashing for image retrieval: models, losses and exact evaluation for PyTorch and timm.

Importing the package registers its models, so that ``timm.create_model("hybridhash_64")`` finds them.
"""

from . import models

__all__ = ["models"]
__version__ = "0.1.0"
