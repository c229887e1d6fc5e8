"""Export a bundle for other programs: the Hugging Face Hub."""
