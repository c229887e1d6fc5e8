"""The phases of a run, their order, and the commands on a run: training, labeling, export and reports."""
