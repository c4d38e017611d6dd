"""The compiler: plan, trace, compose ONNX segments, write and check a bundle."""
