"""The integers of checkpoints that other tools have quantised, kept in the bundle."""
