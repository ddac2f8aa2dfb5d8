"""Arrays that cross a room's wall, by what they hold."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Int32Array = NDArray[np.int32]
Float32Array = NDArray[np.float32]
UInt32Array = NDArray[np.uint32]
