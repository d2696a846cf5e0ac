"""What stands in a YAML file against what is read of it: YAML 1.1 and OmegaConf change more than people expect."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

from isoflop.config.validation import SchemaError, join, show

_PLAIN_INT = re.compile(r"[-+]?(?:0|[1-9][0-9_]*|0x[0-9a-fA-F_]+|0b[01_]+)")

_EXPONENT = re.compile(r"^[-+]?[0-9][0-9_]*(?:\.[0-9_]*)?[eE][-+]?[0-9]+$")


def check_written(text: str, verbatim: Sequence[str] = (), key: str = "") -> None:
    """Refuses scalars that are read as something else than they look like.

    Numbers in base 60 (`1:30` is 90) and 8 (`010` is 8) are refused everywhere; in the sections `verbatim` all that
    would not be sent on as it is written, such as `yes`, `1e5` and `1_000`.

    Args:
        text: YAML that can be read.
        verbatim: keys of sections whose values go on as they are written.
        key: of the value that the text is.

    Raises:
        SchemaError: such a scalar, with its key and the mend.
    """
    import yaml

    root = yaml.compose(text, Loader=_loader())
    for place, node in _scalars(root, key):
        kind, written = node.tag.rpartition(":")[2], node.value
        if kind not in ("int", "float", "bool"):
            continue
        value = yaml.load(written, Loader=_loader())
        exact = re.split(r"[.\[]", place)[0] in verbatim
        same = str(value).lower() == written.lower() if kind == "bool" else str(value) == written
        if exact and not same:
            mend = ("write true, or " if value else "leave it out, or ") if kind == "bool" else ""
            raise SchemaError(
                place, f'{written} is read as {show(value)}; {mend}put it in quotes: "{written}"'
            )
        if kind != "bool" and (
            ":" in written or (kind == "int" and not _PLAIN_INT.fullmatch(written))
        ):
            raise SchemaError(
                place,
                f'{written} is read as {show(value)}; put it in quotes ("{written}") if it is text',
            )


def escape(text: str) -> str:
    """The text as OmegaConf reads it back: after a backslash `${` stands for itself, and so do those before."""
    return re.sub(r"(\\*)\$\{", lambda found: 2 * found[1] + "\\${", text)


def dump(values: dict[str, Any]) -> str:
    """Plain values as YAML that is read back to the same: text that would be read as a number is in quotes."""
    import yaml

    return yaml.dump(values, Dumper=_dumper(), sort_keys=False, allow_unicode=True)


def _scalars(node: Any, key: str) -> Iterator[tuple[str, Any]]:
    import yaml

    if isinstance(node, yaml.MappingNode):
        for name, value in node.value:
            yield from _scalars(value, key if name.value == "<<" else join(key, str(name.value)))
    elif isinstance(node, yaml.SequenceNode):
        for number, value in enumerate(node.value):
            yield from _scalars(value, f"{key}[{number}]")
    elif node is not None:
        yield key, node


def _like_omegaconf(base: Any) -> Any:
    """The loader or dumper, with OmegaConf's numbers: 1e5 is one, as in YAML 1.1 it is not."""
    made = type("LikeOmegaConf", (base,), {})
    made.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+0123456789"))
    return made


@cache
def _loader() -> Any:
    import yaml

    return _like_omegaconf(getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # the two differ on tabs


@cache
def _dumper() -> Any:
    import yaml

    return _like_omegaconf(yaml.SafeDumper)
