"""Qdrant as a home for the vectors beside the database: the one place that knows `qdrant_client`."""
