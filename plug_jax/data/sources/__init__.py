"""seqio sources of documents: text files, token files and TFDS."""
