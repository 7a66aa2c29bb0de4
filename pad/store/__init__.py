"""Files, model folders, the hub, the zoo's index."""
