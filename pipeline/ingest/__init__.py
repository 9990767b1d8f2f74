"""Documents in, vectors out: discover, extract, chunk, embed, store."""
