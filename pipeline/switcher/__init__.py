"""The only writer of the mode: admission, drain, stop, release, start, ready, canary, and the record of it all."""
