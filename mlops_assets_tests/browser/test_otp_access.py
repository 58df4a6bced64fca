"""The page `/otp`, measured in each of its states and languages: axe, contrast, targets, reflow, forced colours, the accessibility tree."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlops_assets_tests.browser.accessible import measured, tree, violations
from mlops_assets_tests.browser.chromium import PROGRAM
from mlops_assets_tests.browser.drawing import SCRAWL, draw_with_finger
from mlops_assets_tests.browser.otp import Place

pytestmark = [pytest.mark.browser, pytest.mark.skipif(not PROGRAM, reason="no Chromium: apt-get install chromium")]

TREES = Path(__file__).parent / "trees"


def states(otp: Place, lang: str) -> Iterator[str]:
    """Every state of the page and of the demo's pages, in the order in which one comes through them."""
    otp.page.open(f"{otp.demo_url}/?lang={lang}")
    yield "demo"
    code = otp.start(lang)
    otp.page.run("document.getElementById('pause').value = '0'")  # measuring takes longer than a pause
    yield "start"
    otp.page.click("[value=tones]")
    yield "tones"
    otp.page.click("[value=own]")
    otp.write(code[0])
    draw_with_finger(otp.page, SCRAWL)
    yield "drawing"
    for _ in range(2):
        otp.page.click("#read")
        otp.says({"ko": "읽지 못했습니다", "en": "again"}[lang])
        draw_with_finger(otp.page, SCRAWL)
    yield "doubtful"
    otp.page.click("#typing button")
    yield "too_few"
    otp.page.click("#undo")
    for digit in code[1:]:
        otp.write(digit)
    otp.says({"ko": "입력한 번호는", "en": "The code is"}[lang])
    yield "confirm"
    otp.page.click("#send")
    otp.page.sees({"ko": "인증되었습니다", "en": "verified"}[lang])
    yield "done"
    otp.page.click("#next")
    otp.page.sees({"ko": "로그인", "en": "signed in"}[lang])
    yield "demo_done"
    otp.practise(lang, session="x.y")
    yield "problem"


@pytest.mark.parametrize("lang", ["ko", "en"])
def test_every_state_is_accessible_as_far_as_scripts_can_tell(otp: Place, lang: str, tmp_path: Path):
    pictures = Path(os.environ.get("OTP_PICTURES", tmp_path))
    for state in states(otp, lang):
        assert violations(otp.page) == [], state
        for width, scheme in ((390, "dark"), (320, "light")):
            otp.page.size(width, 844)  # 320 CSS pixels are 1280 at 400 %
            otp.page.prefers(prefers_color_scheme=scheme)
            assert measured(otp.page, "lowContrast") == [], (state, scheme)
            assert measured(otp.page, "smallTargets") == [], (state, width)
            assert measured(otp.page, "stickingOut") == [], (state, width)
        otp.page.prefers(forced_colors="active", prefers_reduced_motion="reduce")
        assert measured(otp.page, "noBorder") == [], state
        assert otp.page.run("document.getAnimations().length") == 0
        photograph(otp, pictures, f"{lang}_{state}")
        otp.page.prefers()
        otp.page.size(390, 844)


def photograph(otp: Place, folder: Path, name: str) -> None:
    """For people to look at: as it is on a desk, on the narrowest screen, in the dark, with the system's colours."""
    if "OTP_PICTURES" in os.environ:
        otp.page.picture(folder / f"{name}_forced.png", width=800, height=1000)
        otp.page.prefers()
        otp.page.picture(folder / f"{name}_desk.png", width=1200, height=1300)
        otp.page.prefers(prefers_color_scheme="dark")
        otp.page.picture(folder / f"{name}_dark_320.png", width=320, height=1600)


def test_the_measures_find_what_is_wrong(otp: Place):
    """Controls: each measure, on a page that was made worse."""
    otp.practise()
    otp.page.run("document.querySelector('[for=code]').remove(); document.getElementById('code').removeAttribute('aria-describedby')")
    assert any(one.startswith("label") for one in violations(otp.page))
    otp.page.run("document.getElementById('code-hint').style.color = '#777'")
    assert [name for name, _ in measured(otp.page, "lowContrast")] == ["code-hint"]
    otp.page.run("Object.assign(document.getElementById('undo').style, {minHeight: '20px', height: '30px', border: 'none'})")
    assert measured(otp.page, "smallTargets") == ["undo"]
    assert measured(otp.page, "noBorder") == ["undo"]
    otp.page.run("document.getElementById('pad').style.cssText = 'width: 900px; max-width: none'")
    assert measured(otp.page, "stickingOut") == ["pad"]


@pytest.mark.parametrize("lang", ["ko", "en"])
def test_the_accessibility_tree_is_as_it_was_seen_last(otp: Place, lang: str):
    """A change shows in review. To take it over, delete the file and run this test twice."""
    otp.start(lang)
    seen = {"start": tree(otp.page)}
    otp.page.run("document.getElementById('code').focus()")
    for digit in "123456":
        otp.page.press(digit)
    otp.page.press("Enter")
    otp.says("1, 2, 3, 4, 5, 6")
    seen["confirm"] = tree(otp.page)
    for state, found in seen.items():
        kept = TREES / f"{lang}_{state}.txt"
        if not kept.exists():
            kept.parent.mkdir(exist_ok=True)
            kept.write_text(found, encoding="utf-8")
            pytest.fail(f"{kept.name} did not exist: it is written now, look at it")
        assert found == kept.read_text(encoding="utf-8"), kept.name
        assert "cells" not in found
