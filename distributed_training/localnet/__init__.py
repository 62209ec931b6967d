"""A whole subnet on this machine: creates a run, starts its nodes as processes, shows, checks and reports it."""
