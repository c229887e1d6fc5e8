"""Images in: index, partition, decoding, procedural scenes, transforms, loaders."""
