"""The network in PyTorch and what is done to it before export."""
