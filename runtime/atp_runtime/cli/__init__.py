"""The commands that run on the device."""
