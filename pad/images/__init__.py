"""From what a user names to tensors."""
