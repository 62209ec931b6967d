"""Which rows of a data set become documents: `language_score > 0.9 and language in ('en', 'de')`.

The expression is read with Python's own parser and then interpreted: comparisons of a column with numbers, texts,
True, False or None, joined by `and`, `or`, `not` and parentheses. Nothing in it is ever run.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from distributed_training.errors import ConfigError

MAX_CHARS = 2_000
MAX_DEPTH = 40
_EXAMPLE = "for example: language_score > 0.9 and language == 'en'"

Row = Mapping[str, Any]
_Test = Callable[[Row], bool]
_ORDER: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_SAME: dict[type[ast.cmpop], bool] = {ast.Eq: True, ast.Is: True, ast.NotEq: False, ast.IsNot: False}
_INSIDE: dict[type[ast.cmpop], bool] = {ast.In: True, ast.NotIn: False}


@dataclass(frozen=True, slots=True)
class Filter:
    """A parsed expression. `keeps(row)` needs the `columns` in the row; a value that is missing (None) fits no
    comparison but the one with None. Raises ConfigError where a column cannot be compared like that."""

    text: str
    columns: frozenset[str]
    keeps: _Test


def parse_filter(text: str) -> Filter:
    """Raises ConfigError, in one line that quotes the part at fault."""
    if len(text) > MAX_CHARS:
        raise ConfigError(f"--filter: {len(text)} characters, expected at most {MAX_CHARS}")
    line = text.replace("\n", " ").strip()
    try:
        tree = ast.parse(line, mode="eval")
    except SyntaxError as error:
        raise ConfigError(f"--filter {text!r}: {error.msg} at column {error.offset or 0}; {_EXAMPLE}") from None
    except (ValueError, RecursionError, MemoryError) as error:
        raise ConfigError(f"--filter {text[:80]!r}: {error or 'nested too deeply'}; {_EXAMPLE}") from None
    reader = _Reader(line)
    keeps = reader.test(tree.body, 0)
    return Filter(text, frozenset(reader.columns), keeps)


class _Reader:
    """From syntax to functions; whatever is not listed here is refused."""

    def __init__(self, text: str) -> None:
        self._text = text
        self.columns: set[str] = set()

    def test(self, node: ast.expr, depth: int) -> _Test:
        """What says yes or no: a comparison, or several joined."""
        if depth > MAX_DEPTH:
            self._refuse(node, f"nested more than {MAX_DEPTH} deep")
        if isinstance(node, ast.BoolOp):
            parts = [self.test(value, depth + 1) for value in node.values]
            joined = all if isinstance(node.op, ast.And) else any
            return lambda row: joined(part(row) for part in parts)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            inner = self.test(node.operand, depth + 1)
            return lambda row: not inner(row)
        if not isinstance(node, ast.Compare):
            self._refuse(node, "expected a comparison of a column with a number or a text")
        sides = [node.left, *node.comparators]
        links = [self._link(*link) for link in zip(sides, node.ops, sides[1:], strict=False)]
        return lambda row: all(link(row) for link in links)

    def _link(self, left: ast.expr, sign: ast.cmpop, right: ast.expr) -> _Test:
        """One `left sign right` with a column on exactly one side."""
        if isinstance(left, ast.Name) == isinstance(right, ast.Name):
            self._refuse(left, "expected a column on one side and a number or a text on the other", until=right)
        name = (left if isinstance(left, ast.Name) else right).id  # pyright: ignore[reportAttributeAccessIssue]
        self.columns.add(name)
        if type(sign) in _INSIDE:
            return self._inside(name, left, right, _INSIDE[type(sign)])
        value = self._value(right if isinstance(left, ast.Name) else left)
        if type(sign) in _SAME:
            wanted = _SAME[type(sign)]
            return lambda row: (row[name] == value) is wanted and (row[name] is not None or value is None)
        return self._order(name, sign, left, right, value)

    def _order(self, name: str, sign: ast.cmpop, left: ast.expr, right: ast.expr, value: Any) -> _Test:
        compare, swapped = _ORDER[type(sign)], not isinstance(left, ast.Name)
        if value is None:
            self._refuse(left, "None has no order; expected ==, !=, is or is not", until=right)

        def ordered(row: Row) -> bool:
            found = row[name]
            try:
                return found is not None and bool(compare(value, found) if swapped else compare(found, value))
            except TypeError:
                kinds = f"{type(found).__name__}, which has no order with {type(value).__name__}"
                self._refuse(left, f"column {name} holds {kinds}", until=right)

        return ordered

    def _inside(self, name: str, left: ast.expr, right: ast.expr, wanted: bool) -> _Test:
        """`column in ('a', 'b')`, or `'word' in column`."""
        if isinstance(right, ast.List | ast.Tuple | ast.Set):
            values = [self._value(item) for item in right.elts]
            return lambda row: row[name] is not None and (row[name] in values) is wanted
        if not isinstance(right, ast.Name) or not isinstance(word := self._value(left), str):
            self._refuse(left, "expected: column in ('a', 'b'), or 'word' in column", until=right)

        def contains(row: Row) -> bool:
            found = row[name]
            if found is not None and not isinstance(found, str):
                self._refuse(left, f"column {name} holds {type(found).__name__}, expected text", until=right)
            return found is not None and (word in found) is wanted

        return contains

    def _value(self, node: ast.expr) -> Any:
        sign = 1
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
            sign, node = (-1 if isinstance(node.op, ast.USub) else 1), node.operand
            if not isinstance(node, ast.Constant) or type(node.value) not in (int, float):
                self._refuse(node, "expected a number after the sign")
        if not isinstance(node, ast.Constant) or type(node.value) not in (int, float, str, bool, type(None)):
            self._refuse(node, "expected a number, a text in quotes, True, False or None")
        return sign * node.value if sign < 0 else node.value  # pyright: ignore[reportOperatorIssue]

    def _refuse(self, node: ast.expr, why: str, until: ast.expr | None = None) -> NoReturn:
        whole = ast.get_source_segment(self._text, node) or self._text
        if until is not None:
            whole += " ... " + (ast.get_source_segment(self._text, until) or "")
        raise ConfigError(f"--filter: {' '.join(whole.split())[:120]}: {why}; {_EXAMPLE}")
