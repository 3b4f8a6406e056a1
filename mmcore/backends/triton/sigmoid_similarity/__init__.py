"""Sums of softplus over a similarity matrix, and their gradients."""
