"""Pruning set to a budget: offsets of thresholds, or ratios, fitted on samples.

`command.fit_budget` does all of it; `target` says what a budget is, `cost` what a sample costs,
`passes` records scores, `dials` and `fit` turn them into parameters, `search` looks for per-layer
rates, and `curve` draws accuracy against budget.
"""
