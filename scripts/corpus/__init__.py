"""Parts of tokenize_corpus.py: reading documents, vocabularies, writing shards."""


class CorpusError(Exception):
    """A mistake of the user or of the data: one clear sentence, printed without a traceback."""
