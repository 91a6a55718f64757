"""What decides a run's numbers: the step, the loops, optimisers, scores."""
