"""Benchmarks: asks a bundle their questions, marks the answers, counts the tokens kept, reports."""
