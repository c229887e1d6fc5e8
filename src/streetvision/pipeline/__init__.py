"""The phases of a run, their order, and the command that starts them."""
