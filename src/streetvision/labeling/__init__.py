"""Label images: queues, a local page, and the exchange with other tools."""
