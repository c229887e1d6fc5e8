"""From image files to batches: listing, decoding, grouping, splitting, transforms, loaders."""
