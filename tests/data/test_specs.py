import subprocess
import sys

import ml_collections
import pytest

from glm_jax.data import CorpusSpec, DataError, DataSpec, TokenizerSpec


def test_nested_mappings_become_specs():
    config = ml_collections.ConfigDict(
        {"corpora": [{"source": "a.txt", "weight": 2.0}], "tokenizer": {"vocab_size": 9}}
    )
    spec = DataSpec.from_dict(config)
    assert spec.corpora == (CorpusSpec("a.txt", weight=2.0),)
    assert spec.tokenizer == TokenizerSpec(vocab_size=9)
    assert DataSpec.from_dict({"corpora": {"source": "bible"}}).corpora == (CorpusSpec("bible"),)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sequence_lenght": 4}, "DataSpec has no field 'sequence_lenght'; nearest: sequence_length"),
        ({"corpora": [{"source": "x", "wieght": 1}]}, "CorpusSpec has no field 'wieght'; nearest: weight"),
        ({"tokenizer": {"vocabsize": 1}}, "TokenizerSpec has no field 'vocabsize'; nearest: vocab_size"),
        ({"zzzz": 1}, "nearest: corpora, tokenizer, "),
        ({"corpora": [{"weight": 1}]}, "CorpusSpec needs source"),
        ({"corpora": []}, "at least one corpus"),
        ({"corpora": [{"source": "x"}, {"source": "x"}]}, "names a source twice"),
        ({"corpora": [{"source": "x", "weight": 0}]}, "weight must be a positive number, not 0"),
        ({"corpora": [{"source": "x", "validation_fraction": 1}]}, r"must lie in \[0, 1\)"),
        ({"corpora": [{"source": "x", "documents": "page"}]}, "must be one of blank_line, line, file"),
        ({"packing": "tight"}, "must be one of contiguous, sampled"),
        ({"sequence_length": 3}, "at least 4"),
        ({"tokenize_workers": -1}, "workers must be"),
        ({"loader_workers": -1}, "loader_workers must be 0 or more, not -1"),
        ({"tokenizer": {"vocabulary": "bert"}}, "vocabulary 'bert' needs path"),
    ],
)
def test_bad_values(values, message):
    with pytest.raises(DataError, match=message):
        DataSpec.from_dict(values)


def test_importing_the_data_rooms_is_light():
    code = (
        "import sys, glm_jax.data, glm_jax.tokenizers; "
        "print([m for m in ('grain', 'tensorflow_datasets', 'sentencepiece', 'jax') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
