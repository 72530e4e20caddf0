"""What every measurement reports."""

KEYS = {"value", "unit", "bound", "fraction_of_bound", "counting"}
