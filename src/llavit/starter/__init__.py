"""The embedded default: weights and pictures out of ordinary Python packages, no hub and no GPU needed."""
