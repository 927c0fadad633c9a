"""The one exception a person is meant to read."""


class UserError(Exception):
    """Something the person at the keyboard can mend.

    The message is one sentence saying what was got, what was expected and which key, flag or
    command mends it. Jobs print it without a traceback and exit with code 2 (`common.config.main`).
    """
