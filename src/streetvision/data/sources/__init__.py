"""Images from folders, tables, COCO, tar archives, Parquet files and Hugging Face datasets."""
