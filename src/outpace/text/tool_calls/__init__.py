"""Tool calls and thoughts in what models write: how each family marks them, and reading them as they come."""
