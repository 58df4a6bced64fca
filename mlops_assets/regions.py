"""The names of Korea's provinces and metropolitan cities, as data and people write them. No behaviour beyond looking them up."""

from __future__ import annotations

from typing import Final

#: Full names (the current one first, then those that it had), then what people write for it.
SIDO: Final = (
    (("서울특별시",), ("서울", "서울시")),
    (("부산광역시",), ("부산", "부산시")),
    (("대구광역시",), ("대구", "대구시")),
    (("인천광역시",), ("인천", "인천시")),
    (("광주광역시",), ("광주",)),
    (("대전광역시",), ("대전", "대전시")),
    (("울산광역시",), ("울산", "울산시")),
    (("세종특별자치시",), ("세종", "세종시")),
    (("경기도",), ("경기",)),
    (("강원특별자치도", "강원도"), ("강원",)),
    (("충청북도",), ("충북",)),
    (("충청남도",), ("충남",)),
    (("전북특별자치도", "전라북도"), ("전북",)),
    (("전라남도",), ("전남",)),
    (("경상북도",), ("경북",)),
    (("경상남도",), ("경남",)),
    (("제주특별자치도", "제주도"), ("제주",)),
)

_NAMES: Final = {name: full for full, short in SIDO for name in (*full, *short)}


def sido(name: str) -> tuple[str, ...] | None:
    """Every full name that the province `name` has or had, the current one first; None: there is no such province."""
    return _NAMES.get("".join(name.split()))


def split(region: str) -> list[tuple[tuple[str, ...] | None, str]]:
    """What `region` may mean: (full names of a province or None for any, name within it without spaces or ""), likely ones first.

    `대구 달성군`, `대구광역시달성군`, `달성군`, `대구` are all understood.
    """
    text = "".join(region.split())
    found = [(_NAMES[name], text.removeprefix(name)) for name in sorted(_NAMES, key=len, reverse=True) if text.startswith(name)]
    return [*found, (None, text)] if text else []
