"""Small generated data sets for `mlops up --demo` and for tests: nothing real is committed, and the same seed gives the same bytes.

Belongs here: generators that write files as a user would land them. Does not belong here: landing them (`ingest/objects.py`).
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from PIL import Image


def _words(text: str) -> list[str]:
    return text.split(",")


_SUBJECTS: Final = _words(
    "이 영화,배우들 연기,스토리,결말,영상미,음악,감독의 연출,주인공,대사,액션 장면,편집,초반 전개,후반부,캐릭터,반전,더빙,"
    "컴퓨터 그래픽,분위기,시나리오,조연들,첫 장면,마지막 장면,원작을 살린 각색,배경 음악"
)
_GOOD: Final = _words(
    "정말 재미있었어요,최고였습니다,감동적이네요,훌륭해요,너무 좋았다,완벽했습니다,눈물 나게 좋네요,기대 이상입니다,강추합니다,"
    "몰입감이 대단해요,가슴이 따뜻해집니다,다시 보고 싶어요,시간 가는 줄 몰랐다,인생 영화로 꼽겠습니다,만점이 아깝지 않아요,매력이 넘쳐요"
)
_BAD: Final = _words(
    "정말 지루했어요,최악이었습니다,실망스럽네요,형편없어요,너무 별로였다,엉망이었습니다,돈이 아깝네요,기대 이하입니다,비추합니다,"
    "졸려서 혼났어요,짜증만 납니다,두 번은 못 보겠어요,시간이 아까웠다,왜 만들었는지 모르겠어요,점수를 주기도 싫다,유치하고 뻔해요"
)
_OPENINGS: Final = _words(
    ",,솔직히 ,친구랑 봤는데 ,개봉 날 보고 왔는데 ,주말에 가족과 봤습니다. ,별 기대 없이 봤는데 ,예고편만 보고 골랐는데 ,음... "
)
_ENDINGS: Final = _words(',,, ㅋㅋ, ㅠㅠ,!!, ..., ㅎㅎ, 10년 만에 극장에 갔네요, 여러 번 생각나네, "그 장면"이 떠오른다,~')


def _text(rng: random.Random, positive: bool) -> str:
    """One review. One in eight says something of the other side first, so that a single word does not decide."""
    ours, theirs = (_GOOD, _BAD) if positive else (_BAD, _GOOD)
    said = f"{rng.choice(_SUBJECTS)} {rng.choice(ours)}"
    if rng.random() < 0.5:
        said += f", {rng.choice(_SUBJECTS)}도 {rng.choice(ours)}"
    if rng.random() < 0.125:
        said = f"{rng.choice(_SUBJECTS)} {rng.choice(theirs)} 그래도 {said}"
    return f"{rng.choice(_OPENINGS)}{said}{rng.choice(_ENDINGS)}".strip()


def _reviews(rng: random.Random, rows: int, first_id: int, taken: set[str]) -> Iterator[tuple[str, str, int]]:
    number = first_id
    while number < first_id + rows:
        positive = bool(number % 2)
        text = _text(rng, positive)
        if text in taken:
            continue
        taken.add(text)
        yield str(number), text, int(positive)
        number += 1


def write_reviews(folder: Path, *, train: int = 2500, test: int = 500, seed: int = 7, bad: bool = False) -> None:
    """`ratings_train.txt` and `ratings_test.txt` in NSMC's form: balanced, learnable, with a few dirty rows at the end of the first.

    Args:
        bad: the labels are shuffled: no model can learn from them, so the gate must refuse it. Its texts are other ones, too.
    """
    rng = random.Random(seed + 1_000 * bad)
    taken: set[str] = set()
    rows = list(_reviews(rng, train + test, 1_000_001 + 1_000_000 * bad, taken))
    if bad:
        labels = [label for _, _, label in rows]
        rng.shuffle(labels)
        rows = [(number, text, label) for (number, text, _), label in zip(rows, labels, strict=True)]
    rng.shuffle(rows)
    learn, measure = rows[:train], rows[train:]
    number, text, label = learn[0]
    dirty = [f"{number}\t{text}\t{label}", "9000001\t\t1", "9000002\t   \t0", "9000003\t별점만 남깁니다\t5", "9000004 탭이 없는 줄"]
    folder.mkdir(parents=True, exist_ok=True)
    for name, content, extra in (("ratings_train.txt", learn, dirty), ("ratings_test.txt", measure, [])):
        lines = ["id\tdocument\tlabel", *("\t".join(map(str, row)) for row in content), *extra]
        (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")


# --- comments -----------------------------------------------------------------------------------------------------------------

#: Label, as UnSmile spells it -> how a comment names the group. Nothing in these sentences was ever written by a person.
_GROUPS: Final = {
    "여성/가족": _words("여자들,엄마들,아줌마들,며느리들"),
    "남성": _words("남자들,아빠들,아저씨들,남편들"),
    "성소수자": _words("동성애자들,성소수자들,퀴어들"),
    "인종/국적": _words("외국인들,일본인들,중국인들,난민들"),
    "연령": _words("노인들,중학생들,어르신들,청소년들"),
    "지역": _words("전라도 사람들,경상도 사람들,부산 사람들,충청도 사람들"),
    "종교": _words("교회 사람들,스님들,무슬림들,기독교인들"),
    "기타 혐오": _words("기자들,경찰들,공무원들,의사들"),
}
_HOSTILE: Final = _words(
    "죄다 내쫓아야 한다,하는 짓이 역겹다,없어져야 할 족속이다,수준이 밑바닥이다,믿으면 바보다,나라를 망친다,꼴도 보기 싫다"
)
_FRIENDLY: Final = _words("참 친절하다,이야기를 들었다,행사에 왔다,고생이 많다,인터뷰를 봤다,모임에 다녀왔다,응원한다,생각이 궁금하다")
_ABUSE: Final = _words("닥치고 꺼져라,머리가 텅 비었네,헛소리 작작 해라,한심해서 토 나온다,쓰레기 같은 글이네,입만 열면 개소리네")
_PLAIN: Final = _words(
    "오늘 날씨가 좋다,점심은 국수였다,버스가 늦게 왔다,새 드라마를 봤다,정책이 궁금하다,사진이 잘 나왔다,다음 편이 기다려진다"
)


def _comment(rng: random.Random) -> tuple[str, frozenset[str]]:
    """One comment with its labels. A group's name alone decides nothing: as often as not something friendly is said of it."""
    kind = rng.random()
    if kind < 0.2:
        return rng.choice(_ABUSE), frozenset({"악플/욕설"})
    if kind < 0.3:
        return rng.choice(_PLAIN), frozenset({"clean"})
    first, second = rng.sample(sorted(_GROUPS), 2)
    names = rng.choice(_GROUPS[first])
    if kind < 0.5:
        return f"{names} {rng.choice(_FRIENDLY)}", frozenset({"clean"})
    if kind < 0.65:
        return f"{names}이나 {rng.choice(_GROUPS[second])}이나 {rng.choice(_HOSTILE)}", frozenset({first, second})
    if kind < 0.75:
        return f"{names} {rng.choice(_HOSTILE)} {rng.choice(_ABUSE)}", frozenset({first, "악플/욕설"})
    return f"{names} {rng.choice(_HOSTILE)}", frozenset({first})


def write_comments(folder: Path, *, train: int = 2200, valid: int = 500, seed: int = 7, bad: bool = False) -> None:
    """`unsmile_train_v1.0.tsv` and `unsmile_valid_v1.0.tsv` in UnSmile's form: several labels a row, learnable, with a few dirty rows at
    the end of the first.

    Args:
        bad: the labels are shuffled: no model can learn from them, so the gate must refuse it. Its texts are other ones, too.
    """
    rng = random.Random(seed + 1_000 * bad)
    rows: dict[str, frozenset[str]] = {}
    while len(rows) < train + valid:
        said, labels = _comment(rng)
        opening = (
            rng.choice(_words("나쁜,이런,그런,저런,요즘,진짜,다들,역시"))
            if bad
            else rng.choice(_words("솔직히,근데,그래도,어제,내 생각엔,가끔,정말,아무튼"))
        )
        rows[f"{opening} {said} {rng.choice(_words('ㅋㅋ,ㅎㅎ,ㅠㅠ,...,!!,ㅇㅇ'))}{rng.randint(1, 999)}번째"] = labels
    labels_of = list(rows.values())
    if bad:
        rng.shuffle(labels_of)
    columns = [*_GROUPS, "악플/욕설", "clean"]
    lines = [
        "\t".join([text, *("1" if column in labels else "0" for column in columns), "1" if rng.random() < 0.02 else "0"])
        for text, labels in zip(rows, labels_of, strict=True)
    ]
    learn, measure = lines[:train], lines[train:]
    none = "\t".join(["0"] * 11)
    dirty = [learn[0], f"라벨이 없는 댓글\t{none}", f"\t{none[:-2]}\t1", "탭이 모자란 줄\t0\t1", learn[1].rsplit("\t", 2)[0] + "\t2\t0"]
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in (("unsmile_train_v1.0.tsv", [*learn, *dirty]), ("unsmile_valid_v1.0.tsv", measure)):
        header = "\t".join(["문장", *columns, "개인지칭"])
        (folder / name).write_text("\n".join([header, *content]) + "\n", encoding="utf-8")


# --- photos of tires ------------------------------------------------------------------------------------------------------------

_SIDE: Final = 96


def write_tires(folder: Path, *, count: int = 240, seed: int = 7, bad: bool = False) -> None:
    """`good/` and `defective/` with `count` small grey JPEGs in all, named `expN_num_ID.jpg`: a rough surface, on half of them a dark blob
    or a bright scratch. A few dirty files stand beside them. Each photo is of a piece of its own: IDs are 1,000 apart.

    Args:
        bad: the labels are shuffled: no model can learn from them, so the gate must refuse it. Its photos are other ones, too.
    """
    rng = random.Random(seed + 1_000 * bad)
    defective = [number % 2 == 1 for number in range(count)]
    labels = rng.sample(defective, count) if bad else defective
    for name in ("good", "defective"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for number, (has_defect, label) in enumerate(zip(defective, labels, strict=True)):
        name = f"exp{rng.randint(1, 6)}_num_{1_000_000 * (1 + bad) + 1_000 * number}.jpg"
        _photo(rng, has_defect).save(folder / ("defective" if label else "good") / name, quality=90)
    whole = min((folder / "good").glob("*.jpg")).read_bytes()
    (folder / "good" / "cut_short.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "good" / "no_byte.jpg").write_bytes(b"")
    (folder / "defective" / "a_text.png").write_text("a picture in name only\n", encoding="utf-8")


def _photo(rng: random.Random, defective: bool) -> Image.Image:
    """Coarse and fine noise under uneven light, so that neither brightness nor any single pixel decides."""
    from PIL import Image, ImageChops, ImageDraw, ImageFilter

    def noise(side: int, spread: int) -> Image.Image:
        cells = bytes(rng.randint(128 - spread, 128 + spread) for _ in range(side * side))
        return Image.frombytes("L", (side, side), cells).resize((_SIDE, _SIDE), Image.Resampling.BICUBIC)

    photo = ImageChops.add(noise(6, rng.randint(20, 60)), noise(_SIDE, 18), scale=2, offset=rng.randint(-25, 25))
    if not defective:
        return photo
    mark = Image.new("L", photo.size, 0)
    draw = ImageDraw.Draw(mark)
    x, y = rng.randint(16, _SIDE - 32), rng.randint(16, _SIDE - 32)
    blob = rng.random() < 0.5
    if blob:
        draw.ellipse((x, y, x + rng.randint(8, 18), y + rng.randint(8, 18)), fill=230)
    else:
        draw.line((x, y, x + rng.randint(-14, 30), y + rng.randint(12, 30)), fill=230, width=rng.randint(2, 4))
    return Image.composite(Image.new("L", photo.size, 25 if blob else 235), photo, mark.filter(ImageFilter.GaussianBlur(0.8)))


# --- digits ---------------------------------------------------------------------------------------------------------------------


def write_digits(folder: Path, *, train: int = 4000, test: int = 800, drawn: int = 400, seed: int = 7, bad: bool = False) -> None:
    """Simulated digits as MNIST's four IDX files, as an index of held-out drawings (`drawn/dataset.csv`), and as what users drew
    (`users/labels.jsonl`), each by writers of its own. A few dirty files stand beside them.

    Args:
        bad: the labels are shuffled: no model can learn from them, so the gate must refuse it. Its digits are other ones, too.
    """
    import json

    import numpy as np
    from PIL import Image

    from mlops_assets.systems.digits import idx, simulate

    rng = random.Random(seed + 1_000 * bad)
    first = 1_000_000 * (seed + 1_000 * bad)

    def digits(count: int, writers: int, harshness: float) -> Iterator[tuple[int, Image.Image, str]]:
        for number in range(count):
            by = simulate.writer(writers + number // 20, harshness)
            label = number % 10
            yield label, simulate.picture(simulate.drawing(by, label, number // 10), by.width), f"writer-{by.seed}"

    folder.mkdir(parents=True, exist_ok=True)
    for name, count, writers in (("train", train, first), ("t10k", test, first + 10_000)):
        found = list(digits(count, writers, 0.3))
        labels = [label for label, _, _ in found]
        if bad:
            rng.shuffle(labels)
        pixels = [255 - np.asarray(_tight(picture).resize((28, 28), Image.Resampling.BOX)) for _, picture, _ in found]
        idx.write(folder / f"{name}-images-idx3-ubyte.gz", np.stack(pixels))
        idx.write(folder / f"{name}-labels-idx1-ubyte.gz", np.array(labels, np.uint8))
    for place, writers, count in (("drawn", first + 20_000, drawn), ("users", first + 30_000, drawn)):
        (folder / place / "img").mkdir(parents=True, exist_ok=True)
        rows = []
        for number, (label, picture, writer) in enumerate(digits(count, writers, 0.3)):
            name = f"img/{number:04}.png"
            picture.save(folder / place / name)
            rows.append((name, rng.randrange(10) if bad else label, writer))
        if place == "drawn":
            lines = ["image,label", *(f"{name},{label}" for name, label, _ in rows), "img/none.png,3", f"{rows[0][0]},eleven"]
            (folder / place / "dataset.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
        else:
            items = [{"file": name, "label": label, "writer": writer} for name, label, writer in rows]
            lines = [json.dumps(item) for item in [*items, {"file": "img/blank.png", "label": 5, "writer": rows[0][2]}]]
            Image.new("L", (28, 28), 255).save(folder / place / "img" / "blank.png")
            (folder / place / "labels.jsonl").write_text("\n".join([*lines, "no JSON"]) + "\n", encoding="utf-8")


def _tight(picture: Image.Image) -> Image.Image:
    """Square around what is drawn, with MNIST's margin."""
    from PIL import ImageOps

    left, top, right, bottom = ImageOps.invert(picture).getbbox() or (0, 0, *picture.size)
    half = round(0.7 * max(right - left, bottom - top))
    x, y = (left + right) // 2 + half, (top + bottom) // 2 + half
    return ImageOps.expand(picture, half, 255).crop((x - half, y - half, x + half, y + half))  # beyond its edge a crop would be black


# --- disposal policies ----------------------------------------------------------------------------------------------------------

_POLICY_COLUMNS: Final = _words(
    "시도명,시군구명,관리구역명,관리구역대상지역명,배출장소유형,배출장소,생활쓰레기배출방법,음식물쓰레기배출방법,재활용품배출방법,"
    "일시적다량폐기물배출방법,일시적다량폐기물배출장소,생활쓰레기배출요일,음식물쓰레기배출요일,재활용품배출요일,생활쓰레기배출시작시각,"
    "생활쓰레기배출종료시각,음식물쓰레기배출시작시각,음식물쓰레기배출종료시각,재활용품배출시작시각,재활용품배출종료시각,"
    "일시적다량폐기물배출시작시각,일시적다량폐기물배출종료시각,미수거일,관리부서명,관리부서전화번호,데이터기준일자,제공기관코드,제공기관명"
)
_REGIONS: Final = (
    ("서울특별시", "성북구"),
    ("대구광역시", "달성군"),
    ("경기도", "의왕시"),
    ("제주특별자치도", "서귀포시"),
    ("강원도", "정선군"),
)


def policy_rows(count: int, seed: int = 7) -> list[list[str]]:
    """Header and `count` clean rows of 전국생활쓰레기배출정보표준데이터's form, each of a place of its own."""
    rng = random.Random(seed)
    rows = [list(_POLICY_COLUMNS)]
    for number in range(count):
        sido, sigungu = rng.choice(_REGIONS)
        days = ["+".join(sorted(rng.sample("월화수목금토일", rng.randint(1, 5)), key="월화수목금토일".index)) for _ in range(3)]
        start, end = rng.choice(("18:00", "19:00", "20:00")), rng.choice(("04:00", "23:00", "06:00"))
        method = ["종량제봉투에 넣어 배출", "물기를 제거한 후 전용용기에 배출", "투명한 봉투에 담아 배출", "읍면동에 신고 후 배출"]
        rows.append(
            [sido, sigungu, f"{number % 5 + 1}권역", f"{number}통", rng.choice(("문전수거", "거점수거")), f"{number}번 골목 앞", *method]
            + ["신고한 장소", *days, *(start, end) * 3, "09:00", "18:00", "일요일+공휴일", "환경과", f"02-{1000 + number % 9000}-1234"]
            + [rng.choice(("2026-03-02", "2026-07-15")), "3070000", f"{sido} {sigungu}"]
        )
    return rows


def write_policies(folder: Path, *, rows: int = 200, seed: int = 7, bad: bool = False) -> None:
    """`policies.csv` in CP949, as Excel writes it in Korea: mostly clean rules, and a few dirty ones at the end.

    Args:
        bad: the sheet has lost nine of ten rows: it must not empty the table.
    """
    import csv

    header, *content = policy_rows(rows, seed)
    at = {name: number for number, name in enumerate(header)}

    def changed(number: int, **cells: str) -> list[str]:
        row = list(content[number])
        for name, cell in cells.items():
            row[at[name]] = cell
        return row

    if bad:
        content = content[: rows // 10]
    else:
        content += [
            list(content[0]),
            changed(1, 배출장소="새 장소 1", 배출장소유형="문전수거+거점수거", 생활쓰레기배출종료시각="24:00"),
            changed(2, 배출장소="새 장소 2", 생활쓰레기배출요일="월,수,금요일", 관리부서전화번호="없음"),
            changed(3, 배출장소="=1+1 앞", 미수거일="1899-12-30"),
            changed(4, 배출장소="새 장소 4", 생활쓰레기배출요일="격주 월요일"),
            changed(5, 배출장소="새 장소 5", 음식물쓰레기배출시작시각="25:00"),
        ]
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "policies.csv").open("w", encoding="cp949", newline="") as file:
        csv.writer(file).writerows([header, *content])
