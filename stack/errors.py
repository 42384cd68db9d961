"""The one exception of this package."""


class StackError(Exception):
    """The local stack could not do what was asked; the message says why and what to do about it."""
