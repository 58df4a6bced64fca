"""The page `/otp` as people use it who do not see it: by finger alone, by keyboard alone, by ear alone."""

from __future__ import annotations

import base64
import io

import pytest

from mlops_assets_tests.browser.chromium import PROGRAM
from mlops_assets_tests.browser.drawing import DIGITS, SCRAWL, draw, draw_with_finger, hold, on_pad, tap_with_two_fingers
from mlops_assets_tests.browser.otp import Place
from mlops_assets_tests.conftest import wait_for

pytestmark = [pytest.mark.browser, pytest.mark.skipif(not PROGRAM, reason="no Chromium: apt-get install chromium")]


#: Requests whose address contains `slow` are answered when `go()` is called, those with `down` never.
LATE = """{ const before = window.fetch, late = new Promise(done => { window.go = done; });
    window.asked = 0;
    window.fetch = async (url, options) => {
      if (window.slow && String(url).includes(slow)) { asked += 1; await late; }
      if (window.down && String(url).includes(down)) throw new TypeError("down");
      return before(url, options);
    }; } null"""
ENTER = "document.getElementById('code').focus(); document.execCommand('selectAll'); document.execCommand('insertText', false, {!r})"


def asked(otp: Place) -> int:
    return len(otp.sent("/predict/digits"))


def test_six_digits_by_finger_alone(otp: Place):
    code = otp.start("ko")
    for number, digit in enumerate(code, 1):
        draw_with_finger(otp.page, DIGITS[digit])  # and lifts the finger: the pause alone has it read
        wait_for(lambda number=number: len(otp.entered) == number, f"digit {number} of {code} is read ({otp.line!r})", 15)
    assert otp.entered == code
    otp.says("입력한 번호는")
    assert otp.page.run("document.getElementById('read-back').textContent") == ", ".join(code)
    assert not otp.sent("/otp/confirmation"), "nothing is sent that is not confirmed"
    hold(otp.page)
    otp.page.sees("인증되었습니다")
    assert asked(otp) == 6, "the server is asked once per digit"
    names = {"0": "공", "1": "일", "2": "이", "3": "삼", "4": "사", "5": "오", "6": "육", "7": "칠", "8": "팔", "9": "구"}
    first, *others = otp.spoken()
    assert first == f"{names[code[0]]}, 여섯 자리 중 두 번째 숫자."
    assert " ".join(f"{names[digit]}," for digit in code) in others[4]
    assert others[-1] == "인증되었습니다."
    assert otp.page.run("[...new Set(said.map(one => one.voice))]") == ["near-ko"], "never a voice that is elsewhere"
    assert otp.page.problems == []
    otp.page.click("#next")
    otp.page.sees("로그인한 것과 같습니다")


def test_by_keyboard_alone(otp: Place):
    code = otp.start("en")
    otp.page.press("Tab")
    assert otp.focus() == "code", "the text field comes first"
    assert otp.page.run("[document.activeElement.autocomplete, document.activeElement.inputMode]") == ["one-time-code", "numeric"]
    for digit in code[:-1]:
        otp.page.press(digit)
    otp.page.press("Enter")
    otp.says("Digits are missing. The code has six digits.")
    assert otp.page.run("document.getElementById('code').getAttribute('aria-invalid')") == "true"
    otp.page.press(code[-1])
    otp.says("All digits are entered. Press Check the code.")
    assert otp.focus() == "code", "typing never moves the focus"
    otp.page.press("Enter")
    assert otp.focus() == "confirm-title"
    otp.says(f"The code is {', '.join(code)},")
    otp.page.press("Tab")
    assert otp.focus() == "send"
    otp.page.press("Enter")
    otp.page.sees("The code is verified.")
    assert otp.focus() == "done-title"
    otp.page.press("Tab")
    assert otp.focus() == "next"
    assert asked(otp) == 0
    (confirmed,) = otp.sent("/otp/confirmation")
    assert "digits" not in confirmed
    assert all(entry["drawn"] is None and entry["first"] is None for entry in confirmed["entries"])


def test_every_control_is_reached_by_keyboard(otp: Place):
    otp.practise()
    reached = []
    for _ in range(40):
        otp.page.press("Tab")
        reached.append(otp.focus())
        if reached.count("code") == 2:
            break
    controls = set(
        otp.page.run("""[...document.querySelectorAll("button, input, select, a")].filter(one => one.checkVisibility())
            .filter(one => one.type !== "radio" || one.checked).map(one => one.id || one.value || one.tagName)""")
    )
    assert controls and controls <= set(reached)
    assert reached[:2] == ["code", "BUTTON"]


def test_a_doubtful_digit_is_asked_again_and_then_typing_is_offered(otp: Place):
    otp.start("en")
    otp.write("7")
    for said in ("I am not sure. Please draw it again. Digit two of six.", "I could not read it twice."):
        assert otp.page.run("document.getElementById('type-it').hidden"), "not offered before it is of use"
        draw_with_finger(otp.page, SCRAWL)
        otp.page.click("#read")
        otp.says(said)
        assert otp.entered == "7", "no guess"
    otp.page.click("#type-it")
    assert otp.focus() == "code"
    otp.page.press("5")
    assert otp.entered == "75"
    assert otp.page.run("document.getElementById('type-it').hidden")
    otp.write("3")
    assert otp.entered == "753"


def test_undo_says_what_it_removes(otp: Place):
    otp.start("en")
    for digit in "470":
        otp.write(digit)
    draw_with_finger(otp.page, DIGITS["1"])
    otp.page.click("#undo")
    otp.says("The drawing is cleared. Digit four of six.")
    otp.page.click("#undo")
    otp.says("Removed 0, Digit three of six.")
    tap_with_two_fingers(otp.page)
    otp.says("Removed 7, Digit two of six.")
    assert otp.entered == "4"
    otp.page.click("#undo")
    otp.page.click("#undo")
    otp.says("There is nothing to undo.")
    assert otp.spoken()[-3:] == ["Removed seven, Digit two of six.", "Removed four, Digit one of six.", "There is nothing to undo."]


def test_drawings_are_sent_only_where_one_has_opted_in(otp: Place):
    for save in (False, True):
        code = otp.start("en")
        assert not otp.page.run("document.getElementById('save').checked"), "off at first, also after it was on"
        for digit in code:
            otp.write(digit)
        if save:
            otp.page.click("#save")
        otp.says("If it is right, press Send")
        assert otp.page.run("document.getElementById('saving-said').textContent") == (
            "Your drawings will be saved." if save else "Your drawings will not be saved."
        )
        otp.page.click("#send")
        otp.page.sees("The code is verified.")
        (confirmed,) = otp.sent("/otp/confirmation")
        assert confirmed["save"] is save
        assert confirmed.get("digits") == (code if save else None)
        assert [entry["first"] for entry in confirmed["entries"]] == (list(code) if save else [None] * 6)
        assert [entry["corrected"] for entry in confirmed["entries"]] == [False] * 6
        assert {entry["version"] for entry in confirmed["entries"]} == {"1"}
        assert [is_drawing(entry["drawn"]) for entry in confirmed["entries"]] == [save] * 6
        (verified,) = otp.sent("/verify")
        assert verified == {"session": verified["session"], "code": code}


def is_drawing(drawn: str | None) -> bool:
    from PIL import Image

    if drawn is None:
        return False
    picture = Image.open(io.BytesIO(base64.b64decode(drawn)))
    return picture.format == "PNG" and picture.size == (280, 280) and picture.convert("L").getextrema() == (0, 255)


def test_a_wrong_code_can_be_corrected_and_after_three_the_link_ends(otp: Place):
    code = otp.start("en")
    wrong = code[:-1] + str((int(code[-1]) + 1) % 10)
    otp.page.run("document.getElementById('code').focus()")
    for digit in wrong:
        otp.page.press(digit)
    for said in (
        "The code was not accepted.",
        "The code was not accepted.",
        "The code was not accepted.",
        "This link can no longer be used.",
    ):
        otp.page.press("Enter")
        otp.page.run("document.getElementById('said').textContent = ''; document.getElementById('send').focus()")
        otp.page.press("Enter")
        otp.says(said)
        assert otp.entered == wrong, "nothing entered is lost"
        otp.page.run("document.getElementById('code').focus()")


def test_a_pasted_code_is_found_among_words_and_too_long_a_one_is_told(otp: Place):
    otp.practise()
    otp.page.run(ENTER.format("[은행] 인증번호는 １２３-456 입니다"))
    otp.says("All digits are entered.")
    assert otp.entered == "123456"
    otp.page.run(ENTER.format("1234567"))
    otp.says("Too many digits. The code has six digits.")
    assert otp.entered == "1234567", "left as it is, to be mended"


def test_strokes_that_leave_the_pad_are_read_whole(otp: Place):
    otp.page.size(1200, 900)  # there is room beside the pad
    otp.practise()
    draw(otp.page, [[(x + 0.6, y) for x, y in stroke] for stroke in DIGITS["3"]])
    otp.page.click("#read")
    wait_for(lambda: otp.entered == "3", f"read ({otp.line!r})")
    otp.page.run("document.getElementById('said').textContent = ''")
    draw(otp.page, [[(min(x + 0.6, 1.0), y) for x, y in stroke] for stroke in DIGITS["3"]])  # a control: pressed to the edge it is none
    otp.page.click("#read")
    wait_for(lambda: otp.line, "something is said of it")
    assert otp.entered != "33"


def test_without_the_server_nothing_that_was_entered_is_lost(otp: Place):
    otp.start("en")
    otp.write("2")
    otp.page.online(False)
    otp.write("9", read=False)
    otp.page.click("#read")
    otp.says("The server cannot be reached. Your drawing is kept.")
    otp.page.online(True)
    otp.page.click("#read")
    wait_for(lambda: otp.entered == "29", f"the same drawing is read ({otp.line!r})")
    otp.page.online(False)
    otp.page.run("document.getElementById('code').focus()")
    for digit in "2468":
        otp.page.press(digit)
    otp.page.press("Enter")
    otp.says("If it is right")
    otp.page.click("#send")
    otp.says("The service cannot be reached. Your code is kept.")
    assert otp.entered == "292468"


def test_a_full_code_takes_no_more_digits(otp: Place):
    otp.practise()
    otp.page.run(LATE)
    otp.page.run("window.slow = '/predict/'")
    otp.write("3", read=False)
    wait_for(lambda: otp.page.run("asked") == 1, "the digit is being read")
    otp.page.run(ENTER.format("123456"))
    otp.page.run("go()")
    otp.says("All digits are entered.")
    otp.page.run("document.getElementById('said').textContent = ''")
    otp.write("7", read=False)
    otp.says("All digits are entered.")
    assert otp.page.run("asked") == 1, "what has no place is not read"
    assert otp.entered == "123456"
    otp.page.click("#typing button")
    otp.says("The code is 1, 2, 3, 4, 5, 6,")


def test_a_code_of_which_no_event_told_is_read_back_and_sent(otp: Place):
    code = otp.start("en")
    otp.page.run(f"document.getElementById('code').value = '{code}'")
    otp.page.click("#typing button")
    otp.says(f"The code is {', '.join(code)},")
    otp.page.click("#send")
    otp.page.sees("The code is verified.")


def test_a_digit_begun_while_the_server_went_away_is_kept_beside_the_one_before(otp: Place):
    otp.practise()
    otp.page.run(LATE)
    otp.page.run("window.slow = window.down = '/predict/'; document.getElementById('pause').value = '0'")
    otp.page.run("document.getElementById('said').style.height = '6em'")  # what is said must not move the pad under the finger here
    otp.write("2", read=False)
    otp.page.click("#read")
    first, *others = on_pad(otp.page, DIGITS["9"][0])
    otp.page.fingers("touchStart", first)
    for number, point in enumerate(others):
        if number == 20:
            otp.page.run("go()")
            otp.says("Your drawing is kept.")
        otp.page.fingers("touchMove", point)
    otp.page.fingers("touchEnd")
    otp.page.run("window.down = null")
    otp.page.click("#read")
    wait_for(lambda: otp.entered == "29", "one after the other", 15)


def test_what_was_undone_has_no_digit_read_without_its_pause(otp: Place):
    otp.practise()
    otp.page.run(LATE)
    otp.page.run("window.slow = '/predict/'; document.getElementById('pause').value = '0'")
    for digit in "23":
        otp.write(digit, read=False)
        otp.page.click("#read")
    otp.page.click("#undo")
    otp.write("4", read=False)
    otp.page.click("#read")
    otp.write("5", read=False)
    otp.page.run("go()")
    wait_for(lambda: otp.entered == "4", f"read ({otp.line!r})", 15)
    otp.page.click("#repeat")  # whatever was asked for is asked by now
    assert otp.page.run("asked") == 2, "the next digit is not asked for yet"


def test_a_choice_about_saving_holds_when_the_code_is_sent_again(otp: Place):
    """Drawings are confirmed once; then the service is away, and what one wishes may change."""

    def kept() -> list[bool]:
        return [one["save"] for one in otp.sent("/otp/confirmation")]

    for changes in (False, True):
        code = otp.start("en")
        otp.page.run(LATE)
        otp.page.run(ENTER.format(code))
        otp.page.click("#typing button")
        otp.page.click("#save")
        otp.page.run("window.down = '/verify'")
        otp.page.click("#send")
        otp.says("The service cannot be reached.")
        if changes:
            otp.page.click("#save")
            assert otp.page.run("document.getElementById('saving-said').textContent") == "Your drawings will not be saved."
            otp.page.run("window.down = '/otp/confirmation'; document.getElementById('said').textContent = ''")
            otp.page.click("#send")
            otp.says("The service cannot be reached.")
            assert not otp.sent("/verify"), "a right code would keep what is no longer wished"
        otp.page.run("window.down = null")
        otp.page.click("#send")
        otp.page.sees("The code is verified.")
        assert "could not be saved" not in otp.page.text()
        assert kept() == ([True, False] if changes else [True])
    code = otp.start("en")
    otp.page.run(ENTER.format(code[:-1] + str((int(code[-1]) + 1) % 10)))
    otp.page.click("#typing button")
    otp.page.click("#save")
    otp.page.click("#send")
    otp.says("The code was not accepted.")
    otp.page.run(ENTER.format(code))
    otp.page.click("#typing button")
    otp.page.click("#send")
    otp.page.sees("Your drawings could not be saved.")
    assert kept() == [True, False], "what is held belongs to another code"


def test_practice_sends_nothing(otp: Place):
    otp.practise(length=4)
    assert otp.page.run("document.getElementById('saving').hidden")
    for digit in "8316":
        otp.write(digit)
    otp.says("The code is 8, 3, 1, 6,")
    otp.page.click("#send")
    otp.page.sees("Practice is over. Nothing was sent.")
    assert {one.rsplit("/", 1)[-1] for one in otp.page.run("sent.map(one => one.url)")} == {"digits"}


def test_one_voice_at_a_time(otp: Place):
    otp.practise()
    live = "document.getElementById('said').getAttribute('aria-live')"
    otp.write("5")
    assert otp.page.run(live) == "off"
    assert len(otp.spoken()) == 1
    otp.page.click("[value=reader]")
    otp.write("5")
    assert otp.page.run(live) == "assertive"
    assert len(otp.spoken()) == 1, "the screen reader speaks, the page does not"
    assert otp.page.run("heard") == []
    otp.page.click("[value=tones]")
    otp.page.run("heard.length = 0")
    otp.write("7")
    assert otp.page.run(live) == "off"
    assert len(otp.spoken()) == 1
    assert otp.page.run("heard") == [{"tone": 660}] * 3, "one long, two short"


def test_without_a_local_voice_clips_speak_and_never_a_voice_elsewhere(otp: Place):
    removed = otp.page.first("window.voices = window.voices.filter(voice => !voice.localService)")
    otp.practise("ko")
    otp.page.no_more(removed)
    otp.write("0")
    wait_for(lambda: otp.page.run("heard.length") == 3, "three clips are played: the digit, of how many, which is next")
    assert otp.spoken() == []
    places = otp.page.run("fetch('/otp/files/clips/ko.json').then(answer => answer.json())")
    assert otp.page.run("heard.map(one => one.clip)") == [places[key][0] for key in ("d0", "of_6", "nth_2")]


def test_the_page_reaches_only_this_server_and_the_caller(otp: Place):
    otp.start("en")
    origins = otp.page.run("[...new Set(performance.getEntriesByType('resource').map(one => new URL(one.name).origin))]")
    assert origins == [otp.server.url]
    reach = "fetch({!r}, {{mode: 'no-cors'}}).then(() => 'reached', () => 'blocked')"
    assert otp.page.run(reach.format(otp.demo_url + "/livez")) == "reached"
    assert otp.page.run(reach.format("http://127.0.0.1:9/")) == "blocked"
    assert any("Content Security Policy" in problem for problem in otp.page.problems)


def test_the_language_changes_without_losing_what_was_entered(otp: Place):
    otp.practise("ko")
    otp.write("6")
    otp.page.click("[data-lang=en]")
    assert otp.page.run("[document.documentElement.lang, document.title]") == ["en", "Enter your one-time code"]
    assert otp.entered == "6"
    otp.write("1")
    assert otp.spoken()[-1] == "one, Digit three of six."
    assert otp.page.run("said.at(-1).voice") == "near-en"
