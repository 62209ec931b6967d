"""Where the bytes of a data set's files come from."""
