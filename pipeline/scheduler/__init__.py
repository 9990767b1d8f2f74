"""The schedule of a host: its job files, and what prompts the daemon to look at them."""
