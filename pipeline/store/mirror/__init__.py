"""What another home of the vectors is owed, and what it is to hold: the database's side of it."""
