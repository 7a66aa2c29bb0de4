"""A detector that lives: a stream is judged picture by picture, new kinds are proposed, drift is told."""
