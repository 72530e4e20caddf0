"""What goes wrong with other people's checkpoints."""


class FormatError(ValueError):
    """A checkpoint that cannot be used: damaged, incomplete, contradictory or of another kind of model."""


class UnsafeFileError(FormatError):
    """A checkpoint that asks for something which no checkpoint needs: to run code, or to leave its folder."""


def listing(problems: list[str], most: int = 8) -> str:
    """The first problems, and how many more there are."""
    more = [f"and {len(problems) - most} more"] if len(problems) > most else []
    return "; ".join(problems[:most] + more)
