"""The page of a run: events and chain folded into what a browser shows, served here or copied to a folder."""
