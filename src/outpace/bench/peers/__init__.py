"""Other engines, each driven by a worker process of its own. It knows nothing of Outpace's engine."""
