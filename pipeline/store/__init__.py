"""The database: the queue, the progress and the vectors.

Transactions belong to the caller (`Database.begin`); the functions here take a `Session`,
never commit, and know no process, file or model.
"""
