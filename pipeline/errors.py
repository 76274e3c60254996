"""The two ways a build ends early; the command line turns them into exit codes."""


class InputError(ValueError):
    """What the user gave is wrong: one line naming the file, key or row, what was expected and the way out (exit code 2)."""


class WorkError(RuntimeError):
    """The work itself failed, through no fault of the input: a full disk, a teacher that went away (exit code 1)."""
