"""Views: ways of looking at an image, each a score of its own, fitted on normal images alone."""
