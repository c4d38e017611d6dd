"""What passes, by precision and kind of tensor, with what was measured to choose it.

The reference is float32 in both precisions, with the checkpoint's own values. Measured on
random LLaVAs of four layers and on one of pretrained parts (DINOv2-S, SmolLM2-135M: 30 layers,
a few tokens hundreds of times larger than the rest), both dialects, ONNX Runtime on x86-64:

| worst           | fp32, 1 - cosine, norm | fp16, 1 - cosine, norm |
|-----------------|------------------------|------------------------|
| stages          | 3e-12    1e-6          | 5e-6     8e-4          |
| updates         | 3e-12    2e-6          | 5e-6     1.3e-3        |
| end to end      | 3e-11    2e-6          | 4e-5     1.8e-3        |

FP16 rounds to 2^-11, so single elements are off by 3e-4 and sums of them by less; the worst
norms are of layers that blow a rounding error up. A weight matrix that is off by 1 % moves the
norm of its keys, values, scores, logits or update by 4e-3 to 2e-2, which is above every bound
for stages.
"""

from __future__ import annotations

from collections.abc import Mapping

from atp_export.parity.measures import Tolerance

TOLERANCES: Mapping[str, Mapping[str, Tolerance]] = {
    "fp32": {
        "stage": Tolerance(1 - 1e-9, 1e-4),
        "update": Tolerance(1 - 1e-9, 1e-4),
        "end to end": Tolerance(1 - 1e-8, 1e-4),
        "logits": Tolerance(1 - 1e-8, 1e-4, max_abs_error=1e-3),
    },
    "fp16": {
        "stage": Tolerance(1 - 5e-5, 2e-3),
        "update": Tolerance(1 - 5e-5, 3e-3),
        "end to end": Tolerance(1 - 5e-4, 1e-2),
        "logits": Tolerance(1 - 5e-5, 1e-2, max_abs_error=3e-2),
    },
}
