"""Whether TensorRT will take a bundle, found out on a machine that has neither GPU nor Jetson."""
