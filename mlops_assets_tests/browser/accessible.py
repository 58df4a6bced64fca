"""What can be measured of a page's accessibility: axe's rules, contrast, sizes of what is pressed, reflow, the tree that assistive
technology is given. Whether it is good to use is for people to say."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mlops_assets_tests.browser.chromium import Page

#: WCAG 2.2 to AAA where axe has a rule, and its best practices; contrast 7:1 and the size of targets are not on by default.
RULES = """{runOnly: ["wcag2a", "wcag2aa", "wcag2aaa", "wcag21a", "wcag21aa", "wcag22a", "wcag22aa", "best-practice"],
    rules: {"color-contrast-enhanced": {enabled: true}, "target-size": {enabled: true}}, resultTypes: ["violations"]}"""
#: Roles that tell nobody anything.
SILENT = ("none", "generic", "InlineTextBox", "RootWebArea", "MenuListPopup", "menuListOption")
STATES = ("checked", "pressed", "disabled", "invalid", "level", "live")


def violations(page: Page) -> list[str]:
    """axe's violations: rule, and the elements."""
    if not page.run("typeof axe === 'object'"):
        spec = find_spec("axe_playwright_python")
        assert spec is not None and spec.submodule_search_locations
        page.run((Path(spec.submodule_search_locations[0]) / "axe.min.js").read_text(encoding="utf-8") + "; 0")
    found = page.run(f"axe.run(document, {RULES}).then(done => done.violations)")
    return [f"{one['id']}: {[node['html'][:120] for node in one['nodes']]}" for one in found]


def measured(page: Page, what: str) -> list[Any]:
    """The offenders that a function of accessible.js finds."""
    if not page.run("typeof measure === 'object'"):
        page.run(Path(__file__).with_suffix(".js").read_text(encoding="utf-8") + "; 0")
    return list(page.run(f"measure.{what}()"))


def tree(page: Page) -> str:
    """The accessibility tree, a line each: role, name, description, state. What is hidden from assistive technology is not in it."""
    nodes = page.call("Accessibility.getFullAXTree")["nodes"]
    by_id = {node["nodeId"]: node for node in nodes}
    lines: list[str] = []

    def walk(node: dict[str, Any], depth: int) -> None:
        role = _value(node, "role")
        told = not node.get("ignored") and role not in SILENT and not (role == "StaticText" and _is_name(node, by_id))
        if told:
            lines.append("  " * depth + _line(node))
        for child in node.get("childIds", []):
            if child in by_id:
                walk(by_id[child], depth + told)

    walk(nodes[0], 0)
    return "\n".join(lines) + "\n"


def _value(node: dict[str, Any], part: str) -> str:
    return str(node.get(part, {}).get("value", "")).strip()


def _is_name(node: dict[str, Any], by_id: dict[str, Any]) -> bool:
    """Text that is the name of what holds it would be told twice."""
    return _value(by_id.get(node.get("parentId", ""), {}), "name") == _value(node, "name")


def _line(node: dict[str, Any]) -> str:
    name, value, description = (_value(node, part) for part in ("name", "value", "description"))
    states = {one["name"]: one["value"].get("value") for one in node.get("properties", []) if one["name"] in STATES}
    told = [f"{state}={value}" for state, value in states.items() if value not in (False, "false", "off")]
    parts = [_value(node, "role"), name and f'"{name}"', value and f"= {value}", description and f"({description})", *told]
    return " ".join(filter(None, parts))
