"""The one error that means "what you gave me is wrong", as opposed to "I failed"."""


class InputError(ValueError):
    """A wrong input, told in one line: what was wanted, what came, and what to do. The command line exits with 2."""
