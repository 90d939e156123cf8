"""Where effects live: the command line, the loop, checkpoints, metrics, and the stages."""
