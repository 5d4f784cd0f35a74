"""The assertion language of dazzle's tests: the part of JavaScript's expressions that tests are made of.

``status``, ``stdout`` and ``stderr``; numbers, strings, ``true`` and ``false``; ``|| && ! == != === !==
< <= > >= + -`` and parentheses; ``.length`` and the string methods in `_METHODS`. An expression is read by
a parser of its own and evaluated by walking the tree: nothing in it can reach anything else.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

_MAX_LENGTH = 10_000
_MAX_DEPTH = 100
_JS_SPACE = (
    "\t\n\v\f\r \xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
    "\u2028\u2029\u202f\u205f\u3000\ufeff"
)
_TOKEN = re.compile(
    r"""\s*(?:
      (?P<number>\d+(?:\.\d+)?(?![\w.]))
    | (?P<string>"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*')
    | (?P<name>[A-Za-z_$][\w$]*)
    | (?P<operator>===|!==|==|!=|<=|>=|&&|\|\||[<>!+\-().,])
    )""",
    re.VERBOSE | re.DOTALL,
)
_ESCAPE = re.compile(r"\\(?:u([0-9A-Fa-f]{4})|x([0-9A-Fa-f]{2})|(.))", re.DOTALL)
_SIMPLE_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "v": "\v", "0": "\0", "\n": ""}
_BINARY_LEVELS = (("||",), ("&&",), ("===", "!==", "==", "!="), ("<=", ">=", "<", ">"), ("+", "-"))

Scalar = str | float | bool


class AssertionInvalid(ValueError):
    """An expression that is not in the language, or that mixes what cannot be mixed."""

    def __init__(self, expression: str, reason: str) -> None:
        super().__init__(f"assertion {expression[:200]!r}: {reason}")


@dataclass(frozen=True, slots=True)
class _Literal:
    value: Scalar


@dataclass(frozen=True, slots=True)
class _Variable:
    name: str


@dataclass(frozen=True, slots=True)
class _Unary:
    operator: str
    operand: "_Node"


@dataclass(frozen=True, slots=True)
class _Binary:
    operator: str
    left: "_Node"
    right: "_Node"


@dataclass(frozen=True, slots=True)
class _Member:
    target: "_Node"
    name: str
    arguments: "tuple[_Node, ...] | None"


_Node = _Literal | _Variable | _Unary | _Binary | _Member


@dataclass(frozen=True, slots=True)
class Assertion:
    """A parsed expression; pure, may be evaluated concurrently."""

    text: str
    _root: _Node

    @classmethod
    def parse(cls, text: str) -> "Assertion":
        """Raises AssertionInvalid."""
        return cls(text, _Parser(text).parse())

    def holds(self, *, status: int, stdout: str, stderr: str) -> bool:
        """Raises AssertionInvalid when the value is not a boolean."""
        variables: Mapping[str, Scalar] = {"status": float(status), "stdout": stdout, "stderr": stderr}
        value = _Evaluation(self.text, variables).value(self._root)
        if not isinstance(value, bool):
            raise AssertionInvalid(self.text, f"gives {value!r}, not true or false")
        return value


class _Parser:
    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens = list(self._scan())
        self._at = 0
        self._depth = 0

    def _scan(self) -> "Sequence[tuple[str, str]]":
        if len(self._text) > _MAX_LENGTH:
            raise AssertionInvalid(self._text, f"longer than {_MAX_LENGTH} characters")
        found: list[tuple[str, str]] = []
        at, end = 0, len(self._text.rstrip().removesuffix(";").rstrip())
        while at < end:
            match = _TOKEN.match(self._text, at, end)
            if match is None or match.lastgroup is None:
                raise AssertionInvalid(self._text, f"cannot be read at {self._text[at : at + 20]!r}")
            found.append((match.lastgroup, match[match.lastgroup]))
            at = match.end()
        return found

    def parse(self) -> _Node:
        node = self._binary(0)
        if self._at < len(self._tokens):
            raise self._unexpected()
        return node

    def _unexpected(self) -> AssertionInvalid:
        if self._at >= len(self._tokens):
            return AssertionInvalid(self._text, "ends too early")
        return AssertionInvalid(self._text, f"{self._tokens[self._at][1]!r} does not belong there")

    def _take(self, *operators: str) -> str | None:
        if self._at < len(self._tokens):
            kind, text = self._tokens[self._at]
            if kind == "operator" and text in operators:
                self._at += 1
                return text
        return None

    def _expect(self, operator: str) -> None:
        if self._take(operator) is None:
            raise self._unexpected()

    def _binary(self, level: int) -> _Node:
        if level == len(_BINARY_LEVELS):
            return self._unary()
        node = self._binary(level + 1)
        while (operator := self._take(*_BINARY_LEVELS[level])) is not None:
            node = _Binary(operator, node, self._binary(level + 1))
        return node

    def _unary(self) -> _Node:
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise AssertionInvalid(self._text, "is nested too deeply")
        operator = self._take("!", "-", "+")
        node = _Unary(operator, self._unary()) if operator is not None else self._postfix()
        self._depth -= 1
        return node

    def _postfix(self) -> _Node:
        node = self._primary()
        while self._take(".") is not None:
            if self._at >= len(self._tokens) or self._tokens[self._at][0] != "name":
                raise self._unexpected()
            name = self._tokens[self._at][1]
            self._at += 1
            arguments = self._arguments() if self._take("(") is not None else None
            known = name == "length" if arguments is None else name in _METHODS
            if not known:
                raise AssertionInvalid(self._text, f".{name} is not part of the language")
            node = _Member(node, name, arguments)
        return node

    def _arguments(self) -> tuple[_Node, ...]:
        if self._take(")") is not None:
            return ()
        found = [self._binary(0)]
        while self._take(",") is not None:
            found.append(self._binary(0))
        self._expect(")")
        return tuple(found)

    def _primary(self) -> _Node:
        if self._take("(") is not None:
            node = self._binary(0)
            self._expect(")")
            return node
        if self._at >= len(self._tokens):
            raise self._unexpected()
        kind, text = self._tokens[self._at]
        if kind == "operator":
            raise self._unexpected()
        self._at += 1
        if kind == "number":
            return _Literal(float(text))
        if kind == "string":
            return _Literal(_ESCAPE.sub(_unescaped, text[1:-1]))
        if text in {"true", "false"}:
            return _Literal(text == "true")
        if text not in {"status", "stdout", "stderr"}:
            raise AssertionInvalid(self._text, f"{text!r} is none of status, stdout and stderr")
        return _Variable(text)


def _unescaped(match: re.Match[str]) -> str:
    code = match[1] or match[2]
    return chr(int(code, 16)) if code else _SIMPLE_ESCAPES.get(match[3], match[3])


class _Evaluation:
    """The value of a tree, as JavaScript has it: ``&&`` and ``||`` give an operand, ``==`` converts."""

    def __init__(self, text: str, variables: Mapping[str, Scalar]) -> None:
        self._text = text
        self._variables = variables

    def value(self, node: _Node) -> Scalar:
        match node:
            case _Literal(value):
                return value
            case _Variable(name):
                return self._variables[name]
            case _Unary("!", operand):
                return not self.value(operand)
            case _Unary(operator, operand):
                number = _number(self.value(operand))
                return -number if operator == "-" else number
            case _Binary("||", left, right):
                return self.value(left) or self.value(right)
            case _Binary("&&", left, right):
                return self.value(left) and self.value(right)
            case _Binary(operator, left, right):
                return _OPERATORS[operator](self.value(left), self.value(right))
            case _Member(target, name, arguments):
                return self._member(self.value(target), name, arguments)

    def _member(self, target: Scalar, name: str, arguments: "tuple[_Node, ...] | None") -> Scalar:
        if not isinstance(target, str):
            raise AssertionInvalid(self._text, f".{name} needs a string, not {target!r}")
        if arguments is None:
            return float(_units(target))
        values = [self.value(argument) for argument in arguments]
        parameters, method = _METHODS[name]
        if len(values) != parameters:
            raise AssertionInvalid(self._text, f".{name}() takes {parameters} argument(s)")
        return method(target, *(_text(value) for value in values))


def _number(value: Scalar) -> float:
    if isinstance(value, str):
        try:
            return float(value.strip(_JS_SPACE) or 0)
        except ValueError:
            return math.nan
    return float(value)


def _text(value: Scalar) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:g}" if isinstance(value, float) else value


def _units(text: str) -> int:
    """A string's length as JavaScript counts it: UTF-16 code units."""
    return len(text) + sum(character > "\uffff" for character in text) if not text.isascii() else len(text)


def _index(text: str, at: int) -> float:
    return float(at if at < 0 else _units(text[:at]))


def _loosely_equal(left: Scalar, right: Scalar) -> bool:
    if isinstance(left, str) and isinstance(right, str):
        return left == right
    return _number(left) == _number(right)


def _strictly_equal(left: Scalar, right: Scalar) -> bool:
    return type(left) is type(right) and left == right


def _plus(left: Scalar, right: Scalar) -> Scalar:
    if isinstance(left, str) or isinstance(right, str):
        return _text(left) + _text(right)
    return _number(left) + _number(right)


def _ordered(compare: Callable[[float, float], bool]) -> Callable[[Scalar, Scalar], bool]:
    def compared(left: Scalar, right: Scalar) -> bool:
        if isinstance(left, str) and isinstance(right, str):
            return compare((left > right) - (left < right), 0)
        return compare(_number(left), _number(right))

    return compared


_OPERATORS: Mapping[str, Callable[[Scalar, Scalar], Scalar]] = {
    "==": _loosely_equal,
    "!=": lambda left, right: not _loosely_equal(left, right),
    "===": _strictly_equal,
    "!==": lambda left, right: not _strictly_equal(left, right),
    "<": _ordered(lambda left, right: left < right),
    "<=": _ordered(lambda left, right: left <= right),
    ">": _ordered(lambda left, right: left > right),
    ">=": _ordered(lambda left, right: left >= right),
    "+": _plus,
    "-": lambda left, right: _number(left) - _number(right),
}

_METHODS: Mapping[str, tuple[int, Callable[..., Scalar]]] = {
    # name: (number of arguments, what it does)
    "indexOf": (1, lambda text, part: _index(text, text.find(part))),
    "lastIndexOf": (1, lambda text, part: _index(text, text.rfind(part))),
    "includes": (1, lambda text, part: part in text),
    "startsWith": (1, lambda text, part: text.startswith(part)),
    "endsWith": (1, lambda text, part: text.endswith(part)),
    "trim": (0, lambda text: text.strip(_JS_SPACE)),
    "toLowerCase": (0, lambda text: text.lower()),
    "toUpperCase": (0, lambda text: text.upper()),
}
