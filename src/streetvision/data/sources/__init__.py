"""Images from folders, tables, tar archives, Parquet files and Hugging Face datasets."""
