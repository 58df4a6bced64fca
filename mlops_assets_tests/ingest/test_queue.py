"""The review queue: who is asked what, leases under contention, second opinions, and that the random arm measures the stream."""

from __future__ import annotations

import random
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import Connection, Engine, text

from mlops_assets.ingest import queue
from mlops_assets.ingest.queue import ReviewProblem, random_turn
from mlops_assets.settings import ReviewSection
from mlops_assets_tests.ingest.comments import add_comment, add_label, delete_comment

SYSTEM, LABELS = "hate", ["clean", "지역", "악플/욕설"]
UNCERTAIN = ReviewSection(random_share=0, exclusive=("clean",))
RANDOM = ReviewSection(random_share=1)


def add_score(connection: Connection, id: int, uncertainty: float, labels: tuple[str, ...] = ("clean",), content_hash: int = 1) -> None:
    connection.execute(
        text(
            "INSERT INTO comment_score (system, source, id, content_hash, bundle_sha256, labels, probabilities, uncertainty) "
            "VALUES (:s, 'app', :i, :h, 'b', :l, '{}', :u)"
        ),
        {"s": SYSTEM, "i": id, "h": content_hash, "l": list(labels), "u": uncertainty},
    )


def take(engine: Engine, who: str, section: ReviewSection = UNCERTAIN) -> queue.Task | None:
    with engine.begin() as connection:
        return queue.take(connection, SYSTEM, who, section)


def taken(engine: Engine, who: str, section: ReviewSection = UNCERTAIN) -> queue.Task:
    found = take(engine, who, section)
    assert found is not None
    return found


def say(engine: Engine, task: queue.Task, who: str, *labels: str, section: ReviewSection = UNCERTAIN) -> queue.Answered:
    with engine.begin() as connection:
        return queue.answer(connection, SYSTEM, task.task, who, labels, LABELS, section)


def expire(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(
            text("UPDATE review_task SET leased_until = clock_timestamp() - interval '1 second' WHERE leased_to IS NOT NULL")
        )


@pytest.fixture
def ten(engine: Engine) -> None:
    """Ten comments; number 10 is the most uncertain."""
    with engine.begin() as connection:
        for number in range(1, 11):
            add_comment(connection, number)
            add_score(connection, number, number / 10)


def test_the_most_uncertain_first_and_only_what_nobody_has_labelled(engine: Engine, ten: None) -> None:
    with engine.begin() as connection:
        add_label(connection, 10, ["clean"])
        delete_comment(connection, 9)
        add_comment(connection, 8, "고친 글", content_hash=2)  # its score is of another text
    asked = []
    while (task := take(engine, "가")) is not None:
        asked.append(task.id)
        assert say(engine, task, "가", "clean").settled
    assert asked == [7, 6, 5, 4, 3, 2, 1]


def test_two_people_never_get_the_same_question_at_the_same_time(engine: Engine, ten: None) -> None:
    start = threading.Barrier(8)

    def person(number: int) -> int | None:
        start.wait()
        task = take(engine, f"person {number}")
        return None if task is None else task.id

    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(person, range(8)))
    assert sorted(got, key=lambda n: n or 0) == [3, 4, 5, 6, 7, 8, 9, 10]
    assert take(engine, "person 0") is not None and taken(engine, "person 0").id == got[0], "asking again gives one's own"


def test_a_lease_expires_and_a_late_answer_does_not_count_twice(engine: Engine, ten: None) -> None:
    mine = taken(engine, "가")
    assert taken(engine, "나").id != mine.id
    expire(engine)
    assert taken(engine, "다").id == mine.id
    with pytest.raises(ReviewProblem, match="somebody else") as problem:
        say(engine, mine, "가", "clean")
    assert problem.value.code == "lease_lost"
    assert say(engine, mine, "다", "clean").settled
    assert say(engine, mine, "다", "clean").settled, "the same answer again is the same answer"
    with pytest.raises(ReviewProblem) as problem:
        say(engine, mine, "다", "지역")
    assert problem.value.code == "already_given"
    with engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM comment_label")).scalar_one() == 1


def test_a_late_answer_counts_when_nobody_else_was_asked(engine: Engine, ten: None) -> None:
    mine = taken(engine, "가")
    expire(engine)
    assert say(engine, mine, "가", "clean").settled


def test_disagreement_asks_another_person_until_two_agree(engine: Engine, ten: None) -> None:
    first = taken(engine, "가")
    assert not say(engine, first, "가", "지역", "악플/욕설").settled
    assert taken(engine, "가").id != first.id, "not the same person again"
    second = taken(engine, "나")
    assert (second.task, second.opinions) == (first.task, 1)
    assert say(engine, second, "나", "clean").labels is None
    third = taken(engine, "다")
    assert third.task == first.task
    done = say(engine, third, "다", "악플/욕설", "지역")
    assert done.settled and done.labels == ("악플/욕설", "지역")
    assert taken(engine, "라").id != first.id


def test_a_comment_on_which_nobody_agrees_is_given_up(engine: Engine, ten: None) -> None:
    section = ReviewSection(random_share=0, max_opinions=2)
    first = taken(engine, "가", section)
    say(engine, first, "가", "지역", section=section)
    second = taken(engine, "나", section)
    assert second.task == first.task
    assert say(engine, second, "나", "악플/욕설", section=section).labels is None
    assert taken(engine, "다", section).id != first.id


def test_what_one_skips_others_are_asked(engine: Engine, ten: None) -> None:
    mine = taken(engine, "가")
    with engine.begin() as connection:
        queue.skip(connection, SYSTEM, mine.task, "가")
        queue.skip(connection, SYSTEM, mine.task, "가")
    assert taken(engine, "가").id != mine.id
    assert taken(engine, "나").id == mine.id


def test_an_answer_about_a_text_that_changed_is_refused(engine: Engine, ten: None) -> None:
    mine = taken(engine, "가")
    with engine.begin() as connection:
        add_comment(connection, mine.id, "고친 글", content_hash=2)
    with pytest.raises(ReviewProblem) as problem:
        say(engine, mine, "가", "clean")
    assert problem.value.code == "text_changed"


@pytest.mark.parametrize("labels", [[], ["모름"], ["clean", "지역"], [1]])
def test_labels_are_checked(engine: Engine, ten: None, labels: list[str]) -> None:
    mine = taken(engine, "가")
    with pytest.raises(ReviewProblem) as problem:
        say(engine, mine, "가", *labels)
    assert problem.value.code == "wrong_labels" and take(engine, "가") is not None


@pytest.mark.parametrize("name", ["", "  ", "a" * 65, "a\nb", 3, None])
def test_names_are_checked(name: object) -> None:
    with pytest.raises(ReviewProblem, match="reviewer"):
        queue.person(name)


def test_what_a_moderator_decided_meanwhile_is_not_asked(engine: Engine, ten: None) -> None:
    mine = taken(engine, "가")
    expire(engine)
    with engine.begin() as connection:
        add_label(connection, mine.id, ["지역"])
    assert taken(engine, "나").id != mine.id


def test_the_coin_keeps_its_share() -> None:
    turns = [random_turn(SYSTEM, n, 0.2) for n in range(5_000)]
    assert 900 < sum(turns) < 1_100
    assert turns == [random_turn(SYSTEM, n, 0.2) for n in range(5_000)]


def test_the_random_arm_measures_the_stream_and_all_answers_together_do_not(engine: Engine) -> None:
    """A tenth of the stream is 지역, and that is what the champion is uncertain of. 60 % of the answers come from the uncertain arm."""
    chance = random.Random(1)  # one seed in twenty is outside a 95 % interval
    truth = {number: "지역" if chance.random() < 0.1 else "clean" for number in range(1, 2_001)}
    section = ReviewSection(random_share=0.4)
    with engine.begin() as connection:
        for number, label in truth.items():
            add_comment(connection, number)
            add_score(connection, number, 0.9 if label == "지역" else 0.1, (label,))
        for number in range(1, 41):  # moderators have decided some of them before
            add_label(connection, number, [truth[number]])
        add_comment(connection, 1, source="unsmile/train")  # a data set is not the stream
        add_label(connection, 1, ["악플/욕설"], origin="dataset", source="unsmile/train")
        for _ in range(250):
            task = queue.take(connection, SYSTEM, "가", section)
            assert task is not None
            queue.answer(connection, SYSTEM, task.task, "가", [truth[task.id]], LABELS, section)
        stats = queue.stats(connection, SYSTEM)
        everything = connection.execute(text("SELECT labels FROM comment_label WHERE origin = 'review'")).scalars().all()
    true_rate = sum(label == "지역" for label in truth.values()) / len(truth)
    rate = stats["sample"]["rates"]["지역"]
    assert rate["low"] <= true_rate <= rate["high"]
    assert stats["sample"]["known"] >= stats["drawn"]["random"] and "악플/욕설" not in stats["sample"]["rates"]
    naive = sum(labels == ["지역"] for labels in everything) / len(everything)
    assert naive > rate["high"], "the control must lose"
    assert stats["agreed_with_champion"] == stats["answers"] == 250
    with engine.connect() as connection:
        reached = connection.execute(
            text(
                "SELECT count(*) FROM comment c LEFT JOIN review_task t USING (source, id) "
                "WHERE c.source = 'app' AND sample_order(c.source, c.id) "
                "<= (SELECT max(sample_order(source, id)) FROM review_task WHERE sampled) AND NOT coalesce(t.sampled, false)"
            )
        ).scalar_one()
    assert reached == 0, "the sample is everything that the order has passed"


def test_new_comments_fall_anywhere_into_the_random_order(engine: Engine) -> None:
    with engine.begin() as connection:
        for number in range(1, 61):
            add_comment(connection, number)
    for _ in range(20):
        task = taken(engine, "가", RANDOM)
        say(engine, task, "가", "clean", section=RANDOM)
        with engine.begin() as connection:
            connection.execute(text("UPDATE review_task SET closed_at = now()"))
    with engine.begin() as connection:
        for number in range(61, 121):
            add_comment(connection, number)
    later = []
    for _ in range(20):
        task = taken(engine, "나", RANDOM)
        later.append(task.id)
        with engine.begin() as connection:
            connection.execute(text("UPDATE review_task SET closed_at = now()"))
    assert sum(number > 60 for number in later) > 10, "those that the order had passed before they came are caught up with first"
