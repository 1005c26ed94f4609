"""From a checkpoint to a small one: trace, score, plan, shrink, prove, repair."""
