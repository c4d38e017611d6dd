"""`python -m atp_models.training`: as `atp-train`, for `accelerate launch -m`."""

from __future__ import annotations

import sys

from atp_models.training.cli import main

sys.exit(main())
