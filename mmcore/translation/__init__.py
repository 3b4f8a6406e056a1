"""Linear maps between spaces: from one encoder's embeddings to another's, or to a shared space."""

from mmcore.translation.fitting import fit_map
from mmcore.translation.maps import LinearMap

__all__ = ["LinearMap", "fit_map"]
