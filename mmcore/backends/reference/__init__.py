"""Plain torch, for every device and dtype: the oracle of the tests, and what serves the rest.

Every family has a file here. Where another backend has none of that name, this one serves.
"""
