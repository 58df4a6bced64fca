"""The page for people who do not write code: try the model, see which versions there are and why, stage, promote, roll back.

Belongs here: what is shown, and which job a button launches. Does not belong here: any decision: those are the gate's and the registrar's,
in the Dagster run that the button starts, so that the event log has them.
"""

from __future__ import annotations

import contextlib
import hmac
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import streamlit as st

from mlops_assets import dagster_api
from mlops_assets.settings import Settings, SettingsError, load_settings, shown
from mlops_assets.systems import SYSTEMS

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

    from mlops_assets.lifecycle.system import ModelSystem

EXAMPLES = {"sentiment": "다시 보고 싶은 영화\n별로에요", "hate_speech": "오늘 날씨가 좋다"}
#: Systems that are asked with photos.
OF_PHOTOS = frozenset({"tires", "digits"})


def main() -> None:
    st.set_page_config(page_title="mlops_assets", page_icon="🎬", layout="wide")
    try:
        settings = load_settings()
        engine = _engine(settings.require("database_url"))
        system = st.sidebar.selectbox("시스템 / System", SYSTEMS)
        _links(settings)
        with engine.connect() as connection:
            keys = settings.public_keys_path
            champion(connection, system, keys)
            trial, versions, events, act = st.tabs(["모델 테스트 / Try", "모델 / Models", "이력 / History", "모델 관리 / Manage"])
            with versions:
                compare(connection, system, keys)
            with events:
                history(connection, system, keys)
        with trial:
            predict(settings, system)
        with act:
            manage(settings, system)
    except SettingsError as error:
        st.error(f"{error}")
    except _database_errors() as error:
        st.error(f"데이터베이스에 연결할 수 없습니다. / The database does not answer: {error.__class__.__name__}. `mlops doctor`")


def _database_errors() -> tuple[type[Exception], ...]:
    from sqlalchemy.exc import DBAPIError

    return (DBAPIError,)


@st.cache_resource
def _engine(url: str) -> Engine:
    from mlops_assets import database

    return database.connect(url, pool_size=2)


def _links(settings: Settings) -> None:
    pages = {"Dagster": settings.dagster_url, "MLflow": settings.mlflow_tracking_uri, "Model API": settings.serve_url}
    for name, url in pages.items():
        if url:
            st.sidebar.markdown(f"[{name}]({shown(url)})")


def champion(connection: Connection, system: str, public_keys: Path) -> None:
    from mlops_assets.lifecycle.history import absence, at_home, champion_at, events

    found = champion_at(connection, system, public_keys)
    if found is None:
        missing = absence(connection, system)
        korean, why = (missing.why_ko, f"{missing.why}. {missing.fix}") if missing else ("", "land data with `mlops land`.")
        st.warning(f"운영 중인 모델이 없습니다. {korean} / No champion yet: {why}")
    else:
        st.subheader(f"{system} v{found['version']} · {found['dataset_version']}")
        shown = [name for name in ("accuracy", "f1", "precision", "recall", "loss") if name in found["metrics"]]
        for column, name in zip(st.columns(max(len(shown), 1)), shown, strict=False):
            threshold = found["thresholds"].get(name)
            column.metric(name, f"{found['metrics'][name]:.4f}", help=f"register_threshold {threshold}" if threshold is not None else None)
        st.caption(f"since {found['since']} · {found['actor']} · {found['reason']} · commit {found['git_commit'][:12]}")
    verdicts = [
        event for event in events(connection, system, public_keys, limit=50) if event["event"] in ("refused", "registered", "promoted")
    ]
    if verdicts:
        last = verdicts[0]
        # A refusal is the gate at work, nothing is broken.
        say = {"refused": st.warning, "registered": st.info, "promoted": st.success}[last["event"]]
        korean = " · 최소값을 넘지 못해 모델 등록에 실패하였습니다." if last["event"] == "refused" else ""
        say(f"{at_home(last['at'])} · {last['dataset_version']}: {last['event']}: {last['why']}{korean}")


def compare(connection: Connection, system: str, public_keys: Path) -> None:
    from mlops_assets.lifecycle.history import compare as versions

    rows = versions(connection, system, public_keys)
    if not rows:
        st.info("데이터셋 버전이 없습니다. / No dataset version yet.")
        return
    st.dataframe(rows, hide_index=True)
    points = [
        {"dataset_version": row["dataset_version"], "model": " ".join((row.get("variant", ""), name)).strip(), "value": row[name]}
        for row in reversed(rows)
        for name in ("f1", "accuracy")
        if name in row
    ]
    if len({(point["dataset_version"], point["model"].partition(" ")[0]) for point in points}) > 1:
        st.altair_chart(_curves(points))


def _curves(points: list[dict[str, Any]]) -> Any:
    """A line for each model and figure. With a mark for each value: the models of one single version are no line yet."""
    import altair

    data = altair.InlineData(values=points)
    chart = altair.Chart(data).mark_line(point={"size": 90})
    return chart.encode(
        x=altair.X("dataset_version:N", sort=None, title=None),
        y=altair.Y("value:Q", scale=altair.Scale(zero=False), title=None),
        color=altair.Color("model:N", title=None),
        tooltip=["dataset_version:N", "model:N", altair.Tooltip("value:Q", format=".4f")],
    )


def history(connection: Connection, system: str, public_keys: Path) -> None:
    from mlops_assets.lifecycle.history import events

    rows = events(connection, system, public_keys)
    if rows:
        st.dataframe(rows, hide_index=True)
    else:
        st.info("이력이 없습니다. / Nothing has happened yet.")


def predict(settings: Settings, system: str) -> None:
    servers = {"champion": settings.serve_url, "candidate": settings.staging_url}
    channel = st.radio("모델 / Model", list(servers), horizontal=True)
    with st.form("try"):
        given = _inputs(system)
        asked = st.form_submit_button("예측 / Predict")
    if not asked:
        return
    url = servers[channel]
    if not given or not url:
        st.warning("입력이 없습니다. / Give it something first." if url else "The model server is not running: `mlops up`")
        return
    names = [name for name, _ in given]
    asking: dict[str, Any] = {"files": [("files", one) for one in given]} if system in OF_PHOTOS else {"json": {"inputs": names}}
    try:
        reply = httpx.post(f"{url}/predict/{system}", timeout=30, trust_env=False, **asking)
        body = reply.json()
    except (httpx.HTTPError, ValueError) as error:
        st.error(f"모델 서버가 응답하지 않습니다. / The model server does not answer: {error}")
        return
    if reply.is_error:
        st.error(f"{body.get('message')} {body.get('fix', '')}")
        return
    rows = [
        {"입력": name, "결과": p["label"]}
        | {of: round(value, 4) for of, value in {"확신도": p["confidence"], **p.get("probs", {})}.items()}
        for name, p in zip(names, body["predictions"], strict=True)
    ]
    figures = {of: st.column_config.NumberColumn(format="%.4f") for row in rows for of, value in row.items() if isinstance(value, float)}
    st.dataframe(rows, hide_index=True, column_config=figures)
    st.caption(f"model v{body['version']} · data {body['dataset_version']} · {body['at']} · `mlops trace {body['request_id']}`")


def _inputs(system: str) -> list[tuple[str, bytes]]:
    """What is asked: a name each, which is the text itself where texts are asked, and the bytes of photos."""
    if system in OF_PHOTOS:
        photos = st.file_uploader("사진을 올리세요 / Photos", type=["jpg", "jpeg", "png", "webp", "bmp"], accept_multiple_files=True)
        return [(photo.name, photo.getvalue()) for photo in photos or []]
    written = st.text_area("텍스트를 입력하세요 (한 줄에 하나) / One text per line", EXAMPLES.get(system, ""))
    return [(line, b"") for line in written.splitlines() if line.strip()]


def manage(settings: Settings, system: str) -> None:
    if not settings.api_token:
        st.warning(
            "토큰이 설정되어 있지 않아 여기서는 모델을 바꿀 수 없습니다. / This page changes models only for who has the token: "
            "set MLOPS_API_TOKEN and start the platform again, or use `mlops stage`, `mlops produce`, `mlops rollback`."
        )
        return
    actions = {
        "stage": "스테이지 / Stage the best as candidate",
        "produce": "운영 등록 / Promote to champion",
        "rollback": "롤백 / Roll back",
    }
    with st.form("manage"):
        action = st.selectbox("작업 / Action", list(actions), format_func=actions.__getitem__, key="action")
        metrics = _metrics(settings, system)
        metric = st.selectbox(
            "기준 지표 / By metric (stage, promote)", list(metrics), format_func=metrics.__getitem__, key=f"metric_{system}"
        )
        version = st.number_input("버전 / Version (0: 자동 / automatic)", min_value=0, step=1, key="version")
        reason = st.text_input("사유 / Reason (recorded and signed)", key="reason")
        # In the form: by itself it would not be sent when the Tab key leads on to its own button (Show password).
        token = st.text_input("토큰 / Token (MLOPS_API_TOKEN)", type="password", key="token")
        asked = st.form_submit_button("실행 / Run")
    if not asked:
        return
    if not hmac.compare_digest(token.encode(), settings.api_token.encode()):
        st.error("토큰이 올바르지 않습니다. / The token is wrong.")
        return
    if not reason.strip() and action != "stage":
        st.error("사유를 입력하세요. / A reason is needed: it is signed into the ledger.")
        return
    _launch(settings, system, action, config(action, metric, int(version), reason))


def _metrics(settings: Settings, system: str) -> dict[str, str]:
    """What the system's models may be chosen by -> the same with its direction; `promotion.metric` first."""
    from importlib import import_module

    from mlops_assets.lifecycle.report import label, way
    from mlops_assets.settings import load_config

    found: ModelSystem = import_module(f"mlops_assets.systems.{system}.training").SYSTEM
    config = load_config(found.config_type, system, settings.configs)
    return {label(name): f"{label(name)} ({way(direction)})" for name, direction in found.choices(config.promotion.metric).items()}


def config(action: str, metric: str, version: int, reason: str) -> dict[str, Any]:
    """The launchpad's form of the job that a button starts."""
    chosen: dict[str, dict[str, Any]] = {
        "stage": {"metric": metric, "reason": reason},
        "produce": {"metric": metric, "reason": reason} | ({"version": version} if version else {}),
        "rollback": {"reason": reason} | ({"to": version} if version else {}),
    }
    return chosen[action]


def _launch(settings: Settings, system: str, action: str, values: dict[str, Any]) -> None:
    try:
        address = settings.require("dagster_url")
        op = f"{system}_{action}_op"
        with st.spinner("Dagster"):
            run = dagster_api.launch(address, f"{system}_{action}", {"ops": {op: {"config": values}}})
    except (OSError, SettingsError) as error:
        st.error(f"실행하지 못했습니다. / Not started: {error}")
        return
    link = f"[run {run[:8]}]({address}/runs/{run})"
    done: dagster_api.RunResult | None = None
    with st.spinner("Dagster"), contextlib.suppress(OSError):
        done = dagster_api.wait(address, run)
    if done is None or done.status not in dagster_api.FINISHED:
        st.info(f"시작되었고 아직 실행 중입니다. 다시 누르지 마세요. / Started and still running, do not press again: {link}")
    elif done.status == "SUCCESS":
        st.success(f"완료되었습니다. / Done: {link}")
    elif done.refused:
        st.warning(f"거절되었습니다. / Refused: {done.sentence} ({link})")
    else:
        st.error(f"{done.status}: {done.sentence or 'see the run'} ({link})")


if __name__ == "__main__":
    main()
