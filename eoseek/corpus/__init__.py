"""A whole corpus as Parquet files of vectors, by one process or by Ray's actors, restartable part by part."""
