"""TensorRT engines of a bundle: planned, built, checked and recorded on the device itself.

Nothing in this package imports PyTorch, Transformers or ONNX: on a Jetson there are TensorRT,
Polygraphy, NumPy and the runtime. TensorRT itself is imported by `library.py` alone, when it is
asked for; everything that only plans works without it.

Read `builder.py` first.
"""
