"""Our own embedding server over sentence-transformers, for Hugging Face model directories; run with `python -m`."""
