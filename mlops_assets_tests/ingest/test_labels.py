"""Which label of a comment holds: the rule's sentences, its properties, and that the database's view is the same rule."""

from __future__ import annotations

from itertools import count

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, text
from sqlalchemy.exc import DBAPIError

from mlops_assets.ingest.labels import Said, Standing, label_set, standing, standing_of
from mlops_assets_tests.ingest.comments import add_comment, add_label

CLEAN, REGION, BOTH = ["clean"], ["지역"], ["지역", "악플/욕설"]


def person(name: str, labels: list[str], predicted: list[str] | None = None) -> Said:
    return Said("review", name, labels, predicted)


MODERATED = Said("moderation", "moderator", REGION)


@pytest.mark.parametrize(
    ("said", "labels", "contested"),
    [
        ([], None, False),
        ([MODERATED], REGION, False),
        ([Said("dataset", "unsmile", CLEAN), MODERATED], REGION, False),
        ([MODERATED, Said("moderation", "moderator", [])], None, False),  # taken back
        ([person("가", CLEAN, CLEAN)], CLEAN, False),
        ([person("가", CLEAN, REGION)], None, True),
        ([person("가", CLEAN)], None, True),
        ([person("가", CLEAN, REGION), person("나", CLEAN, REGION)], CLEAN, False),
        ([person("가", CLEAN, REGION), person("나", REGION, REGION)], None, True),
        ([person("가", CLEAN, REGION), person("나", REGION, REGION), person("다", CLEAN, REGION)], CLEAN, False),
        ([person("가", CLEAN), person("나", REGION), person("다", BOTH)], None, True),
        ([person("가", CLEAN), person("가", CLEAN)], None, True),  # one person twice is one person
        ([person("가", REGION), person("나", CLEAN), person("가", CLEAN)], CLEAN, False),  # who changed their mind
        ([MODERATED, person("가", CLEAN)], REGION, True),  # one person does not overrule a moderator
        ([MODERATED, person("가", REGION)], REGION, False),
        ([MODERATED, person("가", CLEAN), person("나", CLEAN)], CLEAN, False),
        ([MODERATED, person("가", CLEAN), person("나", BOTH)], REGION, True),
        ([person("가", ["악플/욕설", "지역", "지역"], BOTH)], BOTH, False),  # sets, not lists
    ],
)
def test_the_rule(said: list[Said], labels: list[str] | None, contested: bool) -> None:
    found = standing(said)
    assert (found.labels, found.contested) == (None if labels is None else label_set(labels), contested)


_LABELS = st.lists(st.sampled_from(["clean", "지역", "남성", 'a"b{,}\\ ']), min_size=1, max_size=3)
_PEOPLE = st.builds(Said, st.just("review"), st.sampled_from("가나다라마"), _LABELS, st.none() | _LABELS)
_GIVEN = st.builds(Said, st.sampled_from(["dataset", "moderation"]), st.just("rule"), _LABELS)
_TAKEN_BACK = st.just(Said("moderation", "rule", []))
_SAID = st.lists(_PEOPLE | _GIVEN | _TAKEN_BACK, max_size=8)


@given(_SAID)
def test_one_person_never_overrules_and_disagreement_is_never_silent(said: list[Said]) -> None:
    found = standing(said)
    people = {one.actor for one in said if one.origin == "review"}
    latest = {one.actor: label_set(one.labels) for one in said if one.origin == "review"}
    others = [one for one in said if one.origin != "review"]
    if len(people) < 2 and others and others[-1].labels:
        assert found.labels == label_set(others[-1].labels)
    if len(set(latest.values())) > 1 and found.labels not in latest.values():
        assert found.contested
    assert found.settled == (found.labels is not None and not found.contested)
    assert found.persons == len(people)


@given(_SAID, st.randoms())
def test_the_order_of_persons_does_not_matter(said: list[Said], chance) -> None:  # type: ignore[no-untyped-def]
    latest = list({one.actor: one for one in said if one.origin == "review"}.values())
    other = list(latest)
    chance.shuffle(other)
    assert standing(latest) == standing(other)


_ID = count(1)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(_SAID, _SAID)
def test_the_view_is_the_rule_and_forgets_what_was_said_of_another_content(engine: Engine, before: list[Said], said: list[Said]) -> None:
    number = next(_ID)
    with engine.begin() as connection:
        add_comment(connection, number, content_hash=7)
        for one in before:
            add_label(connection, number, one.labels, origin=one.origin, actor=one.actor, predicted=one.predicted, content_hash=7)
        assert standing_of(connection, "app", number) == standing(before)
        add_comment(connection, number, "다시 쓴 댓글", content_hash=8)
        assert standing_of(connection, "app", number) == Standing(None, None, 0, False)
        for one in said:
            add_label(connection, number, one.labels, origin=one.origin, actor=one.actor, predicted=one.predicted, content_hash=8)
        assert standing_of(connection, "app", number) == standing(said)


def test_what_was_said_is_never_changed(engine: Engine) -> None:
    with engine.begin() as connection:
        add_comment(connection, 1)
        add_label(connection, 1, CLEAN)
    with engine.begin() as connection, pytest.raises(DBAPIError, match="append-only"):
        connection.execute(text("UPDATE comment_label SET labels = '{지역}'"))
