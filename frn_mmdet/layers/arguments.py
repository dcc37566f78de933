"""Check what a layer is built with: each error is one sentence.

A config may hold anything (YAML reads ``1e-4`` as a string), and a layer that
took it would fail far from there, or train nothing.
"""

from numbers import Integral, Real

from ..errors import ConfigError

LARGEST = 1e30  # that float32 can hold, with room for a square root


def check(layer: str, name: str, value: object, is_right: bool,
          expected: str) -> None:
    """Raise unless an argument is right.

    Raises:
        ConfigError: Naming the layer, the argument, the value and what is
            expected.
    """
    if not is_right:
        raise ConfigError(f'{layer} {name} must be {expected}, got {value!r}')


def is_number(value: object) -> bool:
    """Whether it is a number up to LARGEST; neither True nor NaN is."""
    return (isinstance(value, Real) and not isinstance(value, bool)
            and abs(value) <= LARGEST)


def is_whole(value: object) -> bool:
    """Whether it is a whole number; neither True nor 3.0 is."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def check_eps(layer: str, eps: object) -> None:
    """Refuse an eps of which a root could not be taken."""
    check(layer, 'eps', eps, is_number(eps) and eps >= 0,
          'a finite number, 0 or more')


def check_count(layer: str, name: str, value: object) -> None:
    """Refuse what is not a whole number from 1 up."""
    check(layer, name, value, is_whole(value) and value >= 1,
          'a whole number, 1 or more')


def check_flag(layer: str, name: str, value: object) -> None:
    """Refuse what is not a bool: 'no' would count as True."""
    check(layer, name, value, isinstance(value, bool), 'True or False')


def divisor(number: int, limit: int) -> int:
    """The largest divisor of a number that is no larger than a limit."""
    return next(n for n in range(limit, 0, -1) if number % n == 0)
