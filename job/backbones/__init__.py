"""The networks that `builtin:` handles name, and the readers of their published weights."""
