"""Building, describing and publishing models of the zoo."""
