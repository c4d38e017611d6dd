"""How long the stages of a bundle take: predicted for a device, or measured on it."""
