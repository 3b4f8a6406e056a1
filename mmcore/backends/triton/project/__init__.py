"""Norm, product and normalisation of rows, and their gradients."""
