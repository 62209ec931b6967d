"""Whether a node can run here, asked beside it or before it: each check with what was found and what mends it."""
