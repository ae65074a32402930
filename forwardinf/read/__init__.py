"""Every training example's loss: the baseline, the plan, the engines that read."""
