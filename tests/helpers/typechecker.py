"""beartype as jaxtyping's checker, with Python's own rule that an int may stand for a float."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
