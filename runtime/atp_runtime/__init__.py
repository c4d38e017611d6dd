"""The on-device runtime: reads a bundle, prunes visual tokens between engine segments, answers."""
