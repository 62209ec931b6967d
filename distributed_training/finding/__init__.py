"""From the chain's roster to a run on this disk: which run, and its files by content."""
