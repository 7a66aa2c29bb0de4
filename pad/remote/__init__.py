"""The Hugging Face hub: asking it, fetching from it into its cache, and what it means by its refusals."""
