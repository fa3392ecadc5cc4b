"""Find copies of photos: pairs, groups, and which photo of each group to keep."""

from hybridhash.duplicates.find import find_duplicates
from hybridhash.duplicates.radius import RadiusEstimate, estimate_radius
from hybridhash.duplicates.result import Duplicates, Group, Pair, Unread

__all__ = [
    "Duplicates",
    "Group",
    "Pair",
    "RadiusEstimate",
    "Unread",
    "estimate_radius",
    "find_duplicates",
]
