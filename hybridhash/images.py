"""Moved to :mod:`hybridhash.data`."""

from hybridhash._moved import moved

__getattr__ = moved(
    __name__,
    {
        name: f"hybridhash.data.{name}"
        for name in ("IMAGE_ENDINGS", "ImageList", "TarImages", "read_image", "to_rgb")
    },
    settings={"ImageList": {"check_files": False, "allow_duplicates": True}},
)
