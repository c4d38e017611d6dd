"""How the demo's deltas are trained: a warm-up of the projector, then stages of `atp-train`."""
