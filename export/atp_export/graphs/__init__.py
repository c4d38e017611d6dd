"""The pieces that are traced, and the two dialects of operators they are written in."""
