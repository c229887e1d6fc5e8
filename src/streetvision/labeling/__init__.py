"""Label images where a label teaches most: queues, a local page, and the exchange with other tools."""
