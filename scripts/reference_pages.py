"""Write the tables of keys in docs/reference from the schemas: `python scripts/reference_pages.py`.

The text of a key is its entry under `Attributes` in the docstring of its dataclass.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from isoflop.config.profile import Profile
from isoflop.config.schema import Sweep
from isoflop.config.yaml_values import dump_yaml

PAGES = Path(__file__).resolve().parents[1] / "docs" / "reference"
SCHEMAS = {"sweep": Sweep, "profile": Profile}

_BLOCK = re.compile(r"(?<=<!-- keys -->\n).*(?=<!-- end of keys -->)", re.DOTALL)
_ENTRY = re.compile(r"^    (\w+): (.*(?:\n     .*)*)", re.MULTILINE)


def update_page(page: str, schema: type) -> str:
    """Return a page with the table of a schema's keys between its two markers."""
    header = "| key | default | meaning |\n|---|---|---|\n"
    rows = (f"| `{key}` | {default} | {meaning} |\n" for key, default, meaning in key_rows(schema))
    table = f"\n{header}{''.join(rows)}\n"
    updated, count = _BLOCK.subn(lambda _: table, page)
    if count != 1:
        raise ValueError(f"expected one pair of markers, found {count}")
    return updated


def key_rows(schema: Any, prefix: str = "", required: str = "required") -> Iterator[list[str]]:
    """Yield key, default and meaning of every key of a schema; keys of inner mappings are dotted.

    Args:
        schema: a dataclass.
        prefix: key of the mapping that holds these keys, such as `data.` or `widths[].`.
        required: text for a key without a default.
    """
    hints, meanings = get_type_hints(schema), read_attributes(schema)
    for field in fields(schema):
        key, hint = prefix + field.name, hints[field.name]
        if is_dataclass(hint):
            yield from key_rows(hint, key + ".", required)
            continue
        yield [key, _default(key, field, required), meanings[field.name].replace("|", "\\|")]
        for inner in filter(is_dataclass, get_args(hint)):
            if get_origin(hint) is tuple:
                yield from key_rows(inner, key + "[].", "required in an entry")
            else:
                yield from key_rows(inner, key + ".", f"required with `{key}`")


def read_attributes(schema: type) -> dict[str, str]:
    """Return the entries under `Attributes` in the docstrings of a class and of its bases."""
    entries: dict[str, str] = {}
    for base in reversed(schema.__mro__):
        section = inspect.cleandoc(base.__doc__ or "").partition("\nAttributes:\n")[2]
        entries |= {name: " ".join(text.split()) for name, text in _ENTRY.findall(section)}
    return entries


def _default(key: str, field: Field[Any], required: str) -> str:
    if key == "name":
        return "the file's stem"
    value = field.default
    if field.default_factory is not MISSING:
        value = field.default_factory()
    if value is MISSING:
        return required
    plain = list(value) if isinstance(value, tuple) else value
    text = dump_yaml({"k": plain}).removeprefix("k:").strip().replace("\n- ", ", ")
    return f"`[{text.removeprefix('- ')}]`" if text.startswith("- ") else f"`{text}`"


def main() -> None:
    """Update the pages."""
    for name, schema in SCHEMAS.items():
        page = PAGES / f"{name}.md"
        page.write_text(update_page(page.read_text(encoding="utf-8"), schema), encoding="utf-8")
        print(f"wrote {page}")


if __name__ == "__main__":
    main()
