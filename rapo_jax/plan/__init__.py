"""Plans for pods without a pod: what a run would need of chips that are not at hand."""
