"""The HTTP edge: OpenAI's API as a gateway to the slots, the management of the host, metrics. Only calls in."""
