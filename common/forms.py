"""JSON files of ours, checked against their form: a dataclass whose fields say what must be there, of which type.

@dataclass(frozen=True)
class Winner:
    dropped_layers: list[int]
    objective: float | None = None

winner = parse(Winner, {"dropped_layers": [2, 3]})
"""

import dataclasses
import json
import math
import types
from pathlib import Path
from typing import TypeVar, get_args, get_origin, get_type_hints

from common.files import check_regular

Form = TypeVar("Form")
NAMES = {
    bool: "true or false",
    int: "a whole number",
    float: "a finite number",
    str: "text",
    dict: "an object",
    list: "a list",
}


def read_form(path: Path, form: type[Form]) -> Form:
    """The content of a JSON file as a `form`, for a block of `common.files.reading`."""
    return parse(form, json.loads(check_regular(path).read_text(encoding="utf-8")))


def parse(form: type[Form], content: object, where: str = "") -> Form:
    """`content`, from JSON, as a `form`: a dataclass, a number, text, list, dict, or one of these or None.

    Entries that a dataclass has not are left out, those with a default may be missing. `true` is no number, and NaN is
    none. Raises ValueError that names the first entry, such as `winner.dropped_layers.0`, of another type.
    """
    origin, args = get_origin(form) or form, get_args(form)
    if origin is types.UnionType:
        kinds = [kind for kind in args if kind is not types.NoneType]
        return None if content is None else parse(kinds[0], content, where)
    if dataclasses.is_dataclass(form):
        return _parse_fields(form, parse(dict, content, where), where)
    accepted = (int, float) if origin is float else origin
    is_other = not isinstance(content, accepted) or (isinstance(content, bool) and origin is not bool)
    if is_other or (origin is float and not abs(content) < math.inf):
        found = repr(content)[:40]
        raise ValueError(f"{where or 'the file'}: expected {NAMES[origin]}, found {found}")
    if origin is list and args:
        return [parse(args[0], part, _inside(where, number)) for number, part in enumerate(content)]
    if origin is dict and args:
        return {name: parse(args[1], part, _inside(where, name)) for name, part in content.items()}
    return content


def _parse_fields(form: type[Form], content: dict, where: str) -> Form:
    fields = {}
    kinds = get_type_hints(form)
    for field in dataclasses.fields(form):
        if field.name in content:
            fields[field.name] = parse(kinds[field.name], content[field.name], _inside(where, field.name))
        elif field.default is field.default_factory is dataclasses.MISSING:
            raise ValueError(f"{_inside(where, field.name)} is missing")
    return form(**fields)


def _inside(where: str, name: object) -> str:
    return f"{where}.{name}" if where else str(name)
