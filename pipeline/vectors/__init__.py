"""Texts as vectors: multilingual sentence embeddings, and nearest neighbours among them."""
