"""Model servers as child processes, and what talks to them."""
