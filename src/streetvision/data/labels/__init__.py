"""Labels that people give with `streetvision label`: the file, and the label of each image."""
