"""Question sets that a policy is evaluated on as in the paper: predictions, scores, summaries."""
