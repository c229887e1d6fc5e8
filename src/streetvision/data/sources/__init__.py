"""Where images come from: folders, tables, archives, Hugging Face datasets."""
