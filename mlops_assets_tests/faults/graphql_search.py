"""Everything that a GraphQL server tells, by its own introspection: one query per field of its root, as deep as is asked for."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import httpx

INTROSPECTION = """{ __schema { queryType { name } types { kind name possibleTypes { name } fields(includeDeprecated: true) { name
    type { ...T } args { name defaultValue type { ...T } } } } } }
    fragment T on __Type { kind name ofType { kind name ofType { kind name ofType { kind name ofType { kind name } } } } }"""


def _named(given: Mapping[str, Any]) -> Mapping[str, Any]:
    while given.get("ofType"):
        given = given["ofType"]
    return given


class Schema:
    """The server's types.

    Args:
        samples: argument name -> a value in GraphQL's syntax, for arguments without which a field is not to be had. A list: each is tried.
    """

    def __init__(self, url: str, samples: Mapping[str, list[str]]) -> None:
        self.url, self.samples = url, samples
        schema = self.ask(INTROSPECTION)["data"]["__schema"]
        self.types = {one["name"]: one for one in schema["types"]}
        self.root = self.types[schema["queryType"]["name"]]

    def ask(self, query: str) -> dict[str, Any]:
        return dict(httpx.post(f"{self.url}/graphql", json={"query": query}, timeout=120, trust_env=False).json())

    def everything(self, depth: int) -> Iterator[tuple[str, str]]:
        """(field, answer) of each root field; what needs an argument of which there is no sample is left out."""
        for field in self.root["fields"]:
            for arguments in self._arguments(field):
                selection = self._selection(field["type"], depth, ())
                yield field["name"], json.dumps(self.ask(f"{{ {field['name']}{arguments}{selection} }}"), ensure_ascii=False)

    def _arguments(self, field: Mapping[str, Any]) -> list[str]:
        needed = [one["name"] for one in field["args"] if one["type"]["kind"] == "NON_NULL" and one["defaultValue"] is None]
        if not all(name in self.samples for name in needed):
            return []
        most = max((len(self.samples[name]) for name in needed), default=1)
        rows = [[f"{name}: {self.samples[name][min(row, len(self.samples[name]) - 1)]}" for name in needed] for row in range(most)]
        return [f"({', '.join(row)})" if row else "" for row in rows]

    def _selection(self, given: Mapping[str, Any], depth: int, above: tuple[str, ...]) -> str:
        kind, name = _named(given)["kind"], _named(given)["name"]
        if kind in ("SCALAR", "ENUM"):
            return ""
        if kind in ("UNION", "INTERFACE"):
            inner = [self._fields(one["name"], depth, above) for one in self.types[name]["possibleTypes"]]
            parts = [f"... on {one['name']} {{ {of} }}" for one, of in zip(self.types[name]["possibleTypes"], inner, strict=True) if of]
            return f" {{ __typename {' '.join(parts)} }}"
        return f" {{ __typename {self._fields(name, depth, above)} }}"

    def _fields(self, name: str, depth: int, above: tuple[str, ...]) -> str:
        """Fields under a name of their own: those of several types may be called alike and be something else."""
        found = []
        for field in self.types[name]["fields"] or ():
            kind, of = _named(field["type"])["kind"], _named(field["type"])["name"]
            leaf = kind in ("SCALAR", "ENUM")
            if (not leaf and (depth <= 0 or of in above)) or not (arguments := self._arguments(field)):
                continue
            found.append(
                f"{name}_{field['name']}: {field['name']}{arguments[0]}{self._selection(field['type'], depth - 1, (*above, name))}"
            )
        return " ".join(found)
