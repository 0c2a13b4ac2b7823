"""Sizes that remember how they came from the widths of groups of channels.

Rewriting a network at certain widths says what its kernels are there. Where the same kernels run at
other widths too, only their sizes differ, and those are polynomials in the widths: a concatenation
adds, flattening multiplies. A ``Size`` is the number at the widths given, by which every rule
decides, and the polynomial, from which the size at all other widths follows.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Ints", "Size", "Terms", "evaluate", "terms_of"]

Ints = npt.NDArray[np.int64]
# Coefficient by monomial, ascending: (3, 3) is the square of width 3, () the constant. Whole ones
# are plain integers, which are compared and hashed far sooner.
Terms = tuple[tuple[tuple[int, ...], Fraction | int], ...]


class Size(int):
    """A number of channels or elements that follows from widths.

    Sums, products and divisions by plain numbers that leave no rest keep the polynomial;
    everything else is an ordinary integer. (No slots: integers take none.)
    """

    _parts: tuple[str, int, int]
    _terms: Terms | None

    @classmethod
    def width(cls, variable: int, value: int) -> Size:
        """The width number ``variable`` itself, which is ``value`` here."""
        size = cls(value)
        size._terms = (((variable,), 1),)
        return size

    @classmethod
    def _made(cls, value: int, how: str, left: int, right: int) -> Size:
        size = cls(value)
        size._terms = None
        size._parts = (how, left, right)
        return size

    def __add__(self, other: int) -> Size:
        return Size._made(int(self) + int(other), "+", self, other)

    __radd__ = __add__

    def __mul__(self, other: int) -> Any:
        if not isinstance(other, int):
            return NotImplemented
        return Size._made(int(self) * int(other), "*", self, other)

    __rmul__ = __mul__

    def __floordiv__(self, other: int) -> int:
        if isinstance(other, Size) or not other or int(self) % other:
            return int(self) // other
        return Size._made(int(self) // other, "/", self, other)

    @property
    def terms(self) -> Terms:
        """The polynomial, worked out when it is first asked for."""
        if self._terms is None:
            how, left, right = self._parts
            if how == "+":
                self._terms = _sum(terms_of(left), terms_of(right))
            elif how == "*":
                self._terms = _product(terms_of(left), terms_of(right))
            else:
                self._terms = tuple((m, _quotient(c, right)) for m, c in terms_of(left))
        return self._terms


def terms_of(size: int) -> Terms:
    """The polynomial of any size; that of a plain number is constant."""
    return size.terms if isinstance(size, Size) else (((), int(size)),)


def evaluate(terms: int | Terms, widths: Mapping[int, Ints]) -> Ints | int:
    """The polynomial at ``widths``, arrays that can be broadcast against each other.

    A plain number is itself.
    """
    if isinstance(terms, int):
        return int(terms)
    result: Any = 0
    for monomial, coefficient in terms:
        value: Any = coefficient.numerator
        for variable in monomial:
            value = value * widths[variable]
        result = result + (
            value if coefficient.denominator == 1 else value // coefficient.denominator
        )
    return result  # type: ignore[no-any-return]


def _quotient(coefficient: Fraction | int, divisor: int) -> Fraction | int:
    exact = Fraction(coefficient) / divisor
    return exact.numerator if exact.denominator == 1 else exact


def _collected(pairs: list[tuple[tuple[int, ...], Fraction | int]]) -> Terms:
    result: dict[tuple[int, ...], Fraction | int] = {}
    for monomial, coefficient in pairs:
        result[monomial] = result.get(monomial, 0) + coefficient
    return tuple(sorted((m, c) for m, c in result.items() if c))


def _sum(left: Terms, right: Terms) -> Terms:
    return _collected([*left, *right])


def _product(left: Terms, right: Terms) -> Terms:
    return _collected([(tuple(sorted(a + b)), x * y) for a, x in left for b, y in right])
