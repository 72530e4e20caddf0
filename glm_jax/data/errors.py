"""The errors of the data rooms."""


class DataError(ValueError):
    """A corpus, its prepared form or an option of the pipeline that cannot be used."""
