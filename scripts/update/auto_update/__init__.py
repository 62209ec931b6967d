"""Updates to signed releases. Standard library only, and nothing of distributed_training: it starts any version."""
