"""INT8 as explicit QuantizeLinear and DequantizeLinear around the linear layers of a graph."""
