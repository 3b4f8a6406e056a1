"""Log-sum-exps of the rows and columns of a similarity matrix, and their gradients."""
