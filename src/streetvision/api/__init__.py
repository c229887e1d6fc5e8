"""The Python API over whole runs. Its public names are those of the package `streetvision`."""
