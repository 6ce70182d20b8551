"""JSON and YAML as values with their lines. A key that is written twice is refused: the second would replace the first.

JSON is read by a JSON parser. YAML is read by the rules of YAML 1.2's core schema for plain scalars, without dates,
octal numbers with a mere zero, and truth values such as `no`; it makes numbers, texts, lists and mappings alone.
"""

from __future__ import annotations

import json
import re
from typing import Any

import yaml

from stages.textfiles.text import UnreadableError
from stages.textfiles.values import FALSE, NULL, NUMBER, TRUE, WHOLE, Lines, scalar

MAX_VALUES = 10_000_000
TAG = "tag:yaml.org,2002:"
PLAIN = {  # what an unquoted text is read as; the first that fits
    "null": NULL,
    "bool": re.compile(f"{TRUE.pattern}|{FALSE.pattern}"),
    "int": WHOLE,
    "float": NUMBER,
    "merge": re.compile("<<"),
}
TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[{}\[\],]|[^\s{}\[\],:"]+')
CAUSES = (  # a part of what PyYAML says, and what helps
    ("character '\\t'", "indent with spaces"),
    ("mapping values are not allowed", 'quote a text that holds ": "'),
    ("end of stream", "a quote or a bracket is not closed"),
    ("another document", "write one list in place of documents between `---`"),
)


def read_json(text: str) -> tuple[Any, Lines]:
    """Return the value of a JSON text with its lines. Raises `UnreadableError` with the line of what is wrong."""
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        hint = "; a file with one job a line ends in .jsonl" if error.msg == "Extra data" else ""
        raise UnreadableError(f"not JSON: {error.msg}, column {error.colno}{hint}", error.lineno) from None
    except (RecursionError, ValueError) as error:  # nested too deep, or a number of thousands of digits
        raise UnreadableError(f"not JSON that can be read: {error}") from None
    return values, _json_lines(text)


def read_yaml(text: str) -> tuple[Any, Lines]:
    """Return the value of a YAML text with its lines. Raises `UnreadableError` with the line of what is wrong."""
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None, Lines(1)
        lines = _yaml_lines(node, {}, {})
        return loader.construct_document(node), lines
    except yaml.reader.ReaderError as error:
        where = text[: error.position].count("\n") + 1
        raise UnreadableError(
            f"not YAML: the character U+{ord(text[error.position]):04X} is not allowed", where
        ) from None
    except yaml.MarkedYAMLError as error:
        raise _explained(error) from None
    except RecursionError:
        raise UnreadableError("not YAML that can be read: it is nested too deep") from None


def value_of(text: str) -> Any:
    """Return what a cell of a table or a word of the command line stands for.

    A list in brackets and a mapping in braces are read as YAML, which raises `UnreadableError`; the rest is a `scalar`.
    """
    bare = text.strip()
    return read_yaml(bare)[0] if bare[:1] in ("[", "{") else scalar(bare)


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012  (PyYAML's name; none of the rules of YAML 1.1)

    def construct_yaml_str(self, node: yaml.ScalarNode) -> str:
        """The text of a node."""
        return _whole(node.value)


_Loader.add_constructor(TAG + "str", _Loader.construct_yaml_str)


for _kind, _pattern in PLAIN.items():
    _Loader.add_implicit_resolver(TAG + _kind, re.compile(f"(?:{_pattern.pattern})\\Z"), None)


def _yaml_lines(node: yaml.Node, seen: dict[int, Lines], sizes: dict[int, int]) -> Lines:
    """The lines of a node and of all in it, each visited once; what no spec can hold is refused.

    `sizes` are the values that each node stands for, with those that its aliases repeat.
    """
    if id(node) in seen:
        if id(node) not in sizes:
            raise UnreadableError(
                "not YAML that is read here: an alias inside of what it stands for", seen[id(node)].line
            )
        return seen[id(node)]
    inside: dict[str | int, Lines] = {}
    found = seen[id(node)] = Lines(node.start_mark.line + 1, inside)
    if node.tag.removeprefix(TAG) not in _kinds(node):
        raise UnreadableError(f"not YAML that is read here: the tag {node.tag!r}", found.line)
    if isinstance(node, yaml.SequenceNode):
        inside |= {index: _yaml_lines(item, seen, sizes) for index, item in enumerate(node.value)}
    elif isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            line = _yaml_lines(key, seen, sizes).line
            if not isinstance(key, yaml.ScalarNode):
                raise UnreadableError("not YAML that is read here: a list or a mapping as a key", line)
            name = _whole(key.value)
            if name in inside:
                raise _twice(name, inside[name].line, line)
            inside[name] = Lines(line, _yaml_lines(value, seen, sizes).inside)
    sizes[id(node)] = 1 + sum(sizes[id(each)] for each in _below(node))
    if sizes[id(node)] > MAX_VALUES:
        raise UnreadableError(f"not YAML that is read here: its aliases stand for over {MAX_VALUES} values", found.line)
    return found


def _below(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [value for _, value in node.value]
    return node.value if isinstance(node, yaml.SequenceNode) else []


def _kinds(node: yaml.Node) -> set[str]:
    """The tags that a node may have, however it got them."""
    if isinstance(node, yaml.SequenceNode):
        return {"seq"}
    if isinstance(node, yaml.MappingNode):
        return {"map"}
    return {"str", *(kind for kind, pattern in PLAIN.items() if pattern.fullmatch(node.value))}


def _json_lines(text: str) -> Lines:
    """The lines of all values of a JSON text that is known to be whole."""
    top: dict[str | int, Lines] = {}
    stack = [(top, True)]  # of each open list or mapping its values, and whether it is a list
    key: str | None = None
    line, counted = 1, 0
    for token in TOKEN.finditer(text):
        line, counted = line + text.count("\n", counted, token.start()), token.start()
        word, (inside, is_list) = token[0], stack[-1]
        if word in ("}", "]"):
            stack.pop()
        elif word != "," and (is_list or key is not None):
            below: dict[str | int, Lines] = {}
            inside[len(inside) if key is None else key] = Lines(line, below)
            key = None
            if word in ("{", "["):
                stack.append((below, word == "["))
        elif word != ",":
            key = json.loads(word)
            if key in inside:
                raise _twice(key, inside[key].line, line)
    return top[0]


def _whole(text: str) -> str:
    r"""The text with one character for its two halves `\ud83d\ude00`, as in JSON; a half alone stays."""
    try:
        return text.encode("utf-16", "surrogatepass").decode("utf-16")
    except UnicodeDecodeError:
        return text


def _twice(key: str, first: int, line: int) -> UnreadableError:
    return UnreadableError(f"{key!r} is written twice, first in line {first}; one of the two would be lost", line)


def _explained(error: yaml.MarkedYAMLError) -> UnreadableError:
    """What PyYAML found, where, and what helps."""
    mark = error.problem_mark or error.context_mark
    says = " ".join(str(error.problem or error.context).split())
    if error.context and error.problem and error.context_mark:
        says = f"{error.context} from line {error.context_mark.line + 1}, {says}"
    helps = next((f"; {cause}" for part, cause in CAUSES if part in says), "")
    return UnreadableError(f"not YAML: {says}{helps}", mark.line + 1 if mark else None)
