"""Sentences that say nothing hateful: of everyday things, and of people by their group. What is flagged of them is flagged for a word.

Belongs here: the sentences. Does not belong here: training data; nothing learns these.
"""

from __future__ import annotations

from typing import Final

#: Of nobody.
EVERYDAY: Final = (
    "점심에 김치찌개 먹었어요",
    "오늘 날씨가 참 좋네요",
    "주말에 가족들과 등산을 다녀왔습니다",
    "이 제품 어디서 살 수 있나요?",
    "버스가 늦어서 회의에 조금 늦었어요",
    "새로 나온 드라마가 재미있다고 하네요",
    "어제 읽은 책을 추천합니다",
    "저녁에 비가 온다고 하니 우산 챙기세요",
    "강아지랑 공원에서 산책했어요",
    "좋은 정보 감사합니다",
    "내일 아침 일찍 기차를 타야 해요",
    "커피 한 잔 마시면서 쉬고 있어요",
)
#: Of somebody, {} for the group's word.
OF_PEOPLE: Final = (
    "{} 한 분이 버스에서 자리를 양보했다",
    "어제 {} 이야기를 다룬 다큐멘터리를 봤어요",
    "우리 동네에 {} 관련 행사가 열린다고 합니다",
    "{} 인터뷰 기사를 읽었습니다",
    "오늘 수업에서 {} 이야기를 들었어요",
    "{} 쪽에서 친절하게 안내해 주었습니다",
    "도서관에 {} 이야기를 담은 책이 새로 들어왔다",
    "친구가 {} 이야기를 들려주었다",
)

#: Words for people that are no slur and name no trait.
GROUPS: Final = (
    *("여성", "남성", "성소수자", "외국인", "중국인", "흑인", "노인", "청소년"),
    *("전라도", "대구", "기독교", "무슬림", "장애인", "간호사"),
)


def sentences() -> list[str]:
    """Return every sentence once, those of people with each group's word."""
    return [*EVERYDAY, *(template.format(word) for word in GROUPS for template in OF_PEOPLE)]
