"""The stages of a run. Each takes its work from the database and leaves its results there."""
