"""Models on disk and on the Hugging Face Hub: save, push and load them, with a model card and a digest."""

from hybridhash._fingerprint import weights_sha256
from hybridhash.hub.repository import load, push_to_hub, save_pretrained

__all__ = ["load", "push_to_hub", "save_pretrained", "weights_sha256"]
