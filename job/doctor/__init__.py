"""The data doctor: what is wrong with a data set, found from its embeddings."""
