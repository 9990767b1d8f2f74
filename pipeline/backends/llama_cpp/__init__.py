"""Our own model server over llama-cpp-python, for embedding and for generation; run with `python -m`."""
