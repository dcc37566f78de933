"""What the plugin raises when a config asks for something impossible."""


class ConfigError(ValueError):
    """One sentence for the user: the key, its value and the choices.

    ``tools/`` print it without a traceback.
    """
