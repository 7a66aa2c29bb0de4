"""From scores to verdicts and figures of merit."""
