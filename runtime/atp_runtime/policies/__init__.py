"""Compares pruning policies of one checkpoint: answers, times, memory and arithmetic."""
