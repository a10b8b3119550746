"""The one exception type for mistakes that the user can mend."""


class PlugError(ValueError):
    """Bad input, configuration, path or checkpoint; the message says what is wrong and what to do.

    The command line prints it without a traceback and exits with status 2.
    """
