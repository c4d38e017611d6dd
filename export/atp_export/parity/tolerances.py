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

Integers of a quantised checkpoint are compared with the same integers in PyTorch. Stage by stage
INT4 is as close as floats are; end to end ONNX Runtime's CPU kernel rounds each input of 4-bit
weights to 8 bits, which TensorRT does not: 4e-5 in cosine and 2e-3 in norm on the random LLaVAs.
Where the checkpoint rounds inputs to INT8, those near the middle of two steps fall to either side
(see `engines.agreement`): 5e-4 and 3e-3 in FP16, nothing yet in FP32.
"""

from __future__ import annotations

from collections.abc import Mapping

from atp_export.parity.measures import Tolerance
from atp_runtime.manifest import Quantisation

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

_ROUNDED = Tolerance(1 - 5e-3, 5e-2)
_END_ROUNDED = {"end to end": _ROUNDED, "logits": _ROUNDED}
_INT8: Mapping[str, Mapping[str, Tolerance]] = {
    "fp32": {"stage": Tolerance(1 - 1e-6, 1e-3), "update": Tolerance(1 - 1e-6, 1e-3)},
    "fp16": {"stage": _ROUNDED, "update": _ROUNDED},
}


def tolerances_of(precision: str, quantisation: Quantisation | None) -> Mapping[str, Tolerance]:
    """What passes for a bundle.

    Args:
        precision: "fp32" or "fp16".
        quantisation: The manifest's; what `atp-calibrate` rounded is not in the checkpoint, and
            does not widen what passes.
    """
    usual = TOLERANCES[precision]
    if quantisation is None or quantisation.tool is None:
        return usual
    if quantisation.activations is None:
        return {**usual, **_END_ROUNDED}
    return {**usual, **_END_ROUNDED, **_INT8[precision]}
