"""The sections of `configs/disposal_policy.yaml` and what each setting means. No behaviour."""

from __future__ import annotations

from typing import Final

from pydantic import Field, model_validator

from mlops_assets.settings import Strict

#: Field -> what 전국생활쓰레기배출정보표준데이터 calls its column.
STANDARD_COLUMNS: Final = {
    "sido": "시도명",
    "sigungu": "시군구명",
    "zone": "관리구역명",
    "area": "관리구역대상지역명",
    "collection_type": "배출장소유형",
    "place": "배출장소",
    "general_method": "생활쓰레기배출방법",
    "food_method": "음식물쓰레기배출방법",
    "recycling_method": "재활용품배출방법",
    "bulky_method": "일시적다량폐기물배출방법",
    "bulky_place": "일시적다량폐기물배출장소",
    "general_days": "생활쓰레기배출요일",
    "food_days": "음식물쓰레기배출요일",
    "recycling_days": "재활용품배출요일",
    "general_start": "생활쓰레기배출시작시각",
    "general_end": "생활쓰레기배출종료시각",
    "food_start": "음식물쓰레기배출시작시각",
    "food_end": "음식물쓰레기배출종료시각",
    "recycling_start": "재활용품배출시작시각",
    "recycling_end": "재활용품배출종료시각",
    "bulky_start": "일시적다량폐기물배출시작시각",
    "bulky_end": "일시적다량폐기물배출종료시각",
    "no_collection": "미수거일",
    "department": "관리부서명",
    "phone": "관리부서전화번호",
    "data_date": "데이터기준일자",
    "provider_code": "제공기관코드",
    "provider": "제공기관명",
}


class ProjectSection(Strict):
    name: str
    description: str = ""
    owners: tuple[str, ...] = ()


class SheetSection(Strict):
    """Where the sheet is read every night: a Google Sheet, or a CSV export of one; neither: only what is landed by hand."""

    spreadsheet: str | None = None
    """The id between /d/ and /edit of its address; the service account is MLOPS_SHEETS_CREDENTIALS."""
    worksheet: str | None = None
    """Title of the tab; null: the first."""
    csv: str | None = None
    """Instead: an address (https://) or a file."""
    encoding: str | None = None
    """Of a CSV; null: by its byte order mark, else UTF-8, else CP949."""
    page_rows: int = Field(default=1000, ge=1, le=50_000)
    """Rows of one request to Google."""
    seconds: float = Field(default=120.0, gt=0)
    """Reading is given up after so long."""

    @model_validator(mode="after")
    def _one_source(self) -> SheetSection:
        if self.spreadsheet and self.csv:
            raise ValueError("give `spreadsheet` or `csv`, not both")
        return self


class CleaningSection(Strict):
    files: tuple[str, ...] = ("*.csv", "*.jsonl")
    """Glob patterns (file name only) of what is a sheet in a landed version."""
    columns: dict[str, str] = STANDARD_COLUMNS
    """Field -> name of its column; those that are not given here are the standard's."""
    collection_types: dict[str, tuple[str, ...]] = Field(min_length=1)
    """Type -> its other spellings. A type that is not here is quarantined, never guessed."""
    max_rows: int = Field(default=500_000, ge=1)

    @model_validator(mode="after")
    def _all_columns(self) -> CleaningSection:
        if unknown := sorted(set(self.columns) - set(STANDARD_COLUMNS)):
            raise ValueError(f"columns: unknown field {', '.join(unknown)}; choose from {', '.join(STANDARD_COLUMNS)}")
        object.__setattr__(self, "columns", STANDARD_COLUMNS | self.columns)
        if len(set(self.columns.values())) != len(self.columns):
            raise ValueError("columns: two fields have the same column")
        return self


class HistorySection(Strict):
    max_loss_share: float = Field(default=0.2, ge=0, le=1)
    """A version with this much fewer policies than now is refused: a sheet that lost rows must not empty the table."""


class PolicyConfig(Strict):
    project: ProjectSection
    sheet: SheetSection = SheetSection()
    cleaning: CleaningSection
    history: HistorySection = HistorySection()
