"""One loop, many objectives; checkpoints that survive a kill."""
