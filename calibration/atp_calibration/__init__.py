"""What is learned from sample data: activation ranges, sensitivity, pruning budgets."""
