"""Which model a commit is about: `python -m mlops_assets.systems.tires.commits` reads COMMIT_MESSAGE and prints one name of the list.

The message is text from whoever may push. It reaches this module through an environment variable and leaves it as one of the known names or
not at all: no shell ever sees it. Belongs here: this reading. Does not belong here: training (`mlops train tires`).
"""

from __future__ import annotations

import re
import sys

from mlops_assets.settings import variable
from mlops_assets.systems.tires.training import SYSTEM

#: A line of its own, as the seed's convention has it: `model: resnet18`.
_LINE = re.compile(r"^model:[ \t]*([a-z0-9_]{1,40})[ \t]*\r?$", re.MULTILINE)


def model_of(message: str) -> str:
    """The variant that a commit message names.

    Raises:
        ValueError: no line `model: NAME`, several different ones, or a name that is not in the list. The message never repeats the text.
    """
    names = set(_LINE.findall(message))
    known = {name: SYSTEM.aliases.get(name, name) for name in (*SYSTEM.variants, *SYSTEM.aliases)}
    if len(names) != 1 or not names <= set(known):
        found = "several different" if len(names) > 1 else "no"
        choices = ", ".join(SYSTEM.variants)
        raise ValueError(
            f"커밋 메시지에서 모델명을 찾을 수 없습니다: the message has {found} line `model: NAME` with NAME one of {choices}"
        )
    return known[names.pop()]


def main() -> int:
    try:
        sys.stdout.write(model_of(variable("COMMIT_MESSAGE")) + "\n")
    except ValueError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
