import hashlib

import numpy as np
import pytest

from glm_jax import data


class Documents:
    """Token ids in memory, in the place of a TokenStore."""

    def __init__(self, documents):
        self.documents = [np.asarray(document, np.uint16) for document in documents]
        self.lengths = np.array([len(document) for document in self.documents], np.int64)

    def __len__(self):
        return len(self.documents)

    def __getitem__(self, document):
        return self.documents[document]

    def fingerprint(self):
        return hashlib.sha256(b"|".join(document.tobytes() for document in self.documents)).hexdigest()


@pytest.fixture(scope="session")
def documents():
    return Documents


@pytest.fixture(scope="session")
def embedded_folder(tmp_path_factory):
    """The data_dir of `embedded`."""
    return str(tmp_path_factory.mktemp("embedded"))


@pytest.fixture(scope="session")
def embedded(embedded_folder):
    """The embedded corpus with a 4,096-piece SentencePiece model, made once for all tests."""
    spec = {
        "corpora": [{"source": "bible"}],
        "sequence_length": 128,
        "data_dir": embedded_folder,
        "tokenize_workers": 0,
    }
    return data.load(spec, report=lambda line: None)
