"""Reading and writing of files (atomic writes, digests, validation), resizing of images, and processes."""
