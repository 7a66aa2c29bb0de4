"""How different two images are."""
