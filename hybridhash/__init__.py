"""Deep hashing for image retrieval: models, losses and exact evaluation for PyTorch and timm."""

__version__ = "0.1.0"
