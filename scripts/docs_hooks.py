"""Hooks of mkdocs that remove the tests' words from code fences: Markdown does not allow them.

`console slow` becomes `console`, and `python train.py` becomes `python` with the file as its title.
"""

from __future__ import annotations

import re
from typing import Any

_WORDED_FENCE = re.compile(r"^```(?P<language>\w+) (?P<word>[\w.-]+)$", re.MULTILINE)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Return a page whose fences have a language, and a title if they are a file."""
    return _WORDED_FENCE.sub(_plain_fence, markdown)


def _plain_fence(fence: re.Match[str]) -> str:
    title = f' title="{fence["word"]}"' if "." in fence["word"] else ""
    return f"```{fence['language']}{title}"
