"""Numbers that are asked for before any tensor is needed."""

LEAST_MEMBERS = 12  # pictures that are alike make a proposal
