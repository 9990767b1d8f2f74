"""Whether the rows of a database agree with each other: each check looks at one thing, in one snapshot.

A check is a function of a session that gives `Disagreement`s and changes nothing. It streams what it looks at, so that
memory does not grow with the database. `repairs` mends what they find; everything there looks again before it writes.
"""
