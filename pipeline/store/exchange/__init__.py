"""A database as a folder of Parquet files: for other tools to read, and for another database to take over."""
