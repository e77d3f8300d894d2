"""Errors that a user can cause, told apart from bugs."""


class InputError(ValueError):
    """A value handed in by the user is not allowed.

    The message is one line that names the argument, the value and what is allowed.
    The command line prints it and exits with code 2; a traceback is left to real bugs.
    """


class GpuUnavailableError(InputError):
    """A product was asked of the GPU, and there is no CuPy, no driver or no device."""


class RunError(RuntimeError):
    """A run that was started in a process of its own ended with an error."""


class DivergedError(RuntimeError):
    """Training stopped because the loss, or an activation, was NaN or infinite."""
