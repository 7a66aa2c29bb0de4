"""Scoring on many processors and machines by Ray. Needs the extra `pad-anomaly[ray]`."""
