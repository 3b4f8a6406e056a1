"""What a case has unless its row of a table says otherwise."""

# Inverse temperatures. CLIP's is clamped at 100 and ends there; errors are largest there as well.
# SigLIP starts at 10; NT-Xent and SupCon have temperature 0.1.
SCALES = {"clip": 100.0, "siglip": 10.0, "nt_xent": 10.0, "sup_con": 10.0}
# Cosine of two rows that belong together, near where it stands while CLIP's loss is still falling.
PAIR_COSINE = 0.2
