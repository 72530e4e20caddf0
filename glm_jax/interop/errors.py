"""Errors of checkpoints."""


class FormatError(ValueError):
    """A checkpoint that cannot be used: damaged, incomplete, contradictory or of another kind of model."""


class UnsafeFileError(FormatError):
    """A checkpoint that asks for something which no checkpoint needs: to run code, or to leave its folder."""


def listing(problems: list[str], limit: int = 8) -> str:
    """The first problems, and how many more there are."""
    more = [f"and {len(problems) - limit} more"] if len(problems) > limit else []
    return "; ".join(problems[:limit] + more)
