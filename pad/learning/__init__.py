"""Training: losses, balance, steps, runs, replay."""
