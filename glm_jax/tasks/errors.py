"""The error of the task rooms."""


class TaskError(ValueError):
    """A task, an example, a template or a result that cannot be used; the message says what, why, and the way out."""
