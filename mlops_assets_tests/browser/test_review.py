"""The review page as a person uses it, by keyboard alone; a comment is text, whatever it holds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml
from sqlalchemy import text

from mlops_assets.settings import Settings
from mlops_assets.store import ObjectStore
from mlops_assets_tests.browser.chromium import PROGRAM, Page, chromium
from mlops_assets_tests.conftest import wait_for
from mlops_assets_tests.factories import World
from mlops_assets_tests.ingest.comments import add_comment
from mlops_assets_tests.serving.running import MANUAL, promote, register, running
from mlops_assets_tests.serving.test_review import TOKEN, add_score

if TYPE_CHECKING:
    from sqlalchemy import Engine

pytestmark = [pytest.mark.browser, pytest.mark.skipif(not PROGRAM, reason="no Chromium: apt-get install chromium")]

ATTACK = '<img src=x onerror="window.hurt=1"><script>window.hurt=1</script> \'); 👨‍👩‍👧 그냥 글입니다'
BAD_LABEL = "</script><script>window.hurt=1</script>"
#: What is on the screen can be answered while the numbers below it are on their way.
STATS_HANG = """window.fetch = (ask => (url, more) => url.endsWith("/stats") ? new Promise(() => {}) : ask(url, more))(window.fetch)"""


@pytest.fixture
def page() -> Iterator[Page]:
    with chromium() as page:
        yield page


def labels(engine: Engine) -> list[list[str]]:
    with engine.connect() as connection:
        return list(connection.execute(text("SELECT labels FROM comment_label ORDER BY sequence")).scalars())


def test_a_person_reviews_by_keyboard_and_no_comment_becomes_html(
    page: Page, engine: Engine, settings: Settings, store: ObjectStore, tmp_path: Path
) -> None:
    world = World(engine, settings, store, system="sentiment", config=MANUAL)
    promote(world, register(world, tmp_path / "bundle", labels=("부정", BAD_LABEL)))
    configs = tmp_path / "configs"
    configs.mkdir()
    (configs / "sentiment.yaml").write_text(
        yaml.safe_dump({"review": {"random_share": 0, "exclusive": ["해당 없음"]}}, allow_unicode=True), encoding="utf-8"
    )
    with engine.begin() as connection:
        for number, words in ((3, ATTACK), (2, "전화는 [PHONE]로 주세요 ㅋㅋㅋ"), (1, "마지막 댓글")):
            add_comment(connection, number, words)
    for number in (1, 2, 3):
        add_score(engine, number, number / 10, "부정")
    with running(settings.model_copy(update={"api_token": TOKEN, "configs": configs})) as server:
        server.serves(1)
        page.open(f"{server.url}/review/sentiment")
        page.run("document.getElementById('reviewer').value = '홍길동'")
        page.run("document.getElementById('token').value = 'wrong'; document.querySelector('#who button').click()")
        page.sees("인증 토큰이 없거나")
        page.run(f"document.getElementById('token').value = '{TOKEN}'; document.querySelector('#who button').click()")
        page.sees("그냥 글입니다")
        assert page.run("document.getElementById('text').textContent") == ATTACK
        assert page.run("[...document.querySelectorAll('#labels input')].map(box => box.value)") == ["부정", BAD_LABEL, "해당 없음"]
        assert page.run("document.querySelector('#text').children.length + document.querySelectorAll('img').length") == 0
        page.picture(tmp_path / "review.png")
        page.press("Enter")
        page.sees("라벨을 하나 이상 고르세요")
        page.press("3")
        page.press("1")
        assert page.run("[...document.querySelectorAll(':checked')].map(box => box.value)") == ["부정"], "해당 없음 stands alone"
        page.press("Enter")
        page.sees("[PHONE]로 주세요")
        assert labels(engine) == [["부정"]]
        page.run(STATS_HANG)
        page.press("s")
        page.sees("마지막 댓글")
        page.press("2")
        page.press("Enter")
        page.sees("지금은 검수할 댓글이 없습니다")
        assert wait_for(lambda: labels(engine) == [["부정"], [BAD_LABEL]], "the second answer is stored")
        assert page.run("window.hurt") is None
        page.run("document.body.innerHTML = '<img src=x onerror=\"window.hurt=1\">'")
        wait_for(lambda: page.run("window.hurt") == 1, "the control hurts")
