"""Training and judging on a small world where the right answer is known."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import polars as pl
import pytest
from sklearn.dummy import DummyClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder
from sklearn.tree import DecisionTreeClassifier

import tidemill as tm
from tidemill.base.clock import DAY, HOUR
from tidemill.base.errors import TrainingError
from tidemill.base.schema import HISTORY, KNOWN_AT, SEQ, TICK, TOMBSTONE
from tidemill.engine.train.train import Order, Rival, Trained, fit, train
from tidemill.ports.executor import Progress

TIME = pl.Datetime("us", "UTC")
DAYS = 40

visits = tm.Source("visits", tm.files("v.csv"), key="id", event_time="at", known_at=tm.before("at", "1d"))
results = tm.Source("results", tm.files("r.csv"), key="id", event_time="done")


def model(estimator: Any, **changes: Any) -> tm.Model:
    given: dict[str, Any] = {
        "examples": visits, "asked_at": "at", "label": tm.Label(results, pl.col("bad") > 0, within="1d"),
        "features": ["x", "noise"], "split": tm.by_time(test="10d", gap="1d", blocks=2), "slices": ["site"],
        "metrics": ["log_loss", "roc_auc"], "kpis": {"misses": lambda truth, p: float(np.mean(truth * (p < 0.5)))},
        "gate": tm.Gate("log_loss", margin=0.01, min_rows=100), "estimator": estimator,
    }  # fmt: skip
    return tm.Model("bad", **{**given, **changes})


def stamped(rows: pl.DataFrame, known: str, before: int = 0) -> pl.DataFrame:
    return rows.with_columns(
        (pl.col(known) - pl.duration(microseconds=before)).alias(KNOWN_AT),
        pl.int_range(pl.len(), dtype=pl.Int64).alias(SEQ),
        pl.lit(value=False).alias(TOMBSTONE),
        pl.lit(0).cast(TIME).alias(TICK),
        pl.lit(value=True).alias(HISTORY),
    )


@pytest.fixture(scope="module")
def tables() -> dict[str, pl.DataFrame]:
    """Forty days of forty visits; the label follows x, and the site decides nothing."""
    rng = np.random.default_rng(7)
    count = 40 * DAYS
    at = np.sort(rng.integers(0, DAYS * DAY, count))
    x = rng.normal(size=count)
    bad = (x + rng.normal(size=count) > 0).astype(float)
    frame = pl.DataFrame(
        {
            "id": np.arange(count),
            "at": at,
            "x": x,
            "noise": rng.normal(size=count),
            "site": rng.choice(["n", "s"], count),
        }
    ).with_columns(pl.col("at").cast(TIME))
    came = frame.select("id", (pl.col("at") + pl.duration(hours=5)).alias("done")).with_columns(bad=pl.Series(bad))
    return {"visits": stamped(frame, "at", DAY), "results": stamped(came, "done")}


def order(**changes: Any) -> Order:
    given: dict[str, Any] = {
        "model": "bad", "training": "t1", "case": "first", "as_of": DAYS * DAY,
        "window": None, "next_seq": {}, "rival": None,
    }  # fmt: skip
    return Order(**{**given, **changes})


def carried_out(tables: dict[str, pl.DataFrame], made: tm.Model, given: Order, rival: Rival | None = None) -> Trained:
    return train(made, tables, given, rival, lambda progress: None)


def test_a_first_model_that_learns_beats_the_baseline(tables: dict[str, pl.DataFrame]) -> None:
    told: list[Progress] = []
    trained = train(model(LogisticRegression()), tables, order(), None, told.append)
    judged = trained.judged
    assert judged["verdict"]["outcome"] == "pass"
    assert judged["metrics"]["roc_auc"]["value"] > 0.7
    assert judged["baseline"]["roc_auc"]["value"] == pytest.approx(0.5, abs=0.1)
    assert judged["left_out"]["immature"] > 0
    assert set(judged["slices"]["site"]) == {"n", "s"}
    assert judged["kpis"]["misses"]["value"] > 0
    assert [each.done for each in told] == sorted(each.done for each in told)
    assert set(trained.profile.features) == {"x", "noise", "_prediction"}
    json.dumps(judged, allow_nan=False)


def test_a_first_model_that_learns_nothing_is_refused(tables: dict[str, pl.DataFrame]) -> None:
    judged = carried_out(tables, model(DecisionTreeClassifier(), features=["noise"]), order()).judged
    assert judged["verdict"]["outcome"] == "refuse"


def test_the_same_order_gives_the_same_result_and_another_training_another_seed(
    tables: dict[str, pl.DataFrame],
) -> None:
    tree = model(DecisionTreeClassifier(max_features=1, max_depth=3))
    first, again = carried_out(tables, tree, order()), carried_out(tables, tree, order())
    assert first.judged == again.judged
    assert first.predictor.estimator.random_state == again.predictor.estimator.random_state
    other = carried_out(tables, tree, order(training="t2"))
    assert other.predictor.estimator.random_state != first.predictor.estimator.random_state
    assert tree.estimator.random_state is None  # the declared estimator is never touched


def test_nothing_known_later_than_the_order_changes_it(tables: dict[str, pl.DataFrame]) -> None:
    early = order(as_of=30 * DAY)
    cut = {name: rows.filter(pl.col(KNOWN_AT) < pl.lit(30 * DAY).cast(TIME)) for name, rows in tables.items()}
    whole, past = (
        carried_out(tables, model(LogisticRegression()), early),
        carried_out(cut, model(LogisticRegression()), early),
    )
    assert whole.judged["metrics"] == past.judged["metrics"]
    assert np.array_equal(whole.predictor.estimator.coef_, past.predictor.estimator.coef_)


def test_a_refresh_is_compared_on_rows_newer_than_the_champion_learned_from(tables: dict[str, pl.DataFrame]) -> None:
    made = model(LogisticRegression())
    champion = carried_out(tables, made, order(as_of=34 * DAY))
    rival = Rival(champion.predictor, 34 * DAY)
    judged = carried_out(tables, made, order(case="refresh", rival="t0"), rival).judged
    newer = tables["visits"].filter(
        pl.col("at") + pl.duration(days=1) >= pl.lit(34 * DAY).cast(TIME),
        pl.col("at") + pl.duration(days=1) < pl.lit(DAYS * DAY).cast(TIME),
    )
    assert judged["verdict"]["rows"] == newer.height
    assert judged["verdict"]["outcome"] == "pass"


def test_a_changed_recipe_that_is_worse_is_refused(tables: dict[str, pl.DataFrame]) -> None:
    champion = carried_out(tables, model(LogisticRegression()), order(as_of=31 * DAY))
    rival = Rival(champion.predictor, 31 * DAY)
    judged = carried_out(tables, model(DummyClassifier()), order(case="changed", rival="t0"), rival).judged
    assert judged["verdict"]["outcome"] == "refuse"
    assert "worse" in judged["verdict"]["reasons"][0]


def test_too_few_new_rows_mean_wait(tables: dict[str, pl.DataFrame]) -> None:
    made = model(LogisticRegression())
    champion = carried_out(tables, made, order(as_of=39 * DAY))
    judged = carried_out(tables, made, order(case="refresh", rival="t0"), Rival(champion.predictor, 39 * DAY)).judged
    assert judged["verdict"]["outcome"] == "wait"


def test_a_window_limits_what_is_learned_from(tables: dict[str, pl.DataFrame]) -> None:
    judged = carried_out(tables, model(LogisticRegression()), order(window=15 * DAY)).judged
    assert judged["first"] >= 25 * DAY
    assert judged["left_out"]["outside_window"] > 0


def test_categories_reach_the_estimator(tables: dict[str, pl.DataFrame]) -> None:
    encoder = make_pipeline(OneHotEncoder(handle_unknown="ignore"), LogisticRegression())
    predictor = fit(model(encoder, features=["site"]), tables, DAYS * DAY)
    assert predictor.encoding.categories == {"site": ("n", "s")}
    odd = pl.DataFrame({"site": ["n", "elsewhere", None]})
    assert np.isfinite(predictor.predict(odd)).all()


def test_errors_say_what_is_missing(tables: dict[str, pl.DataFrame]) -> None:
    with pytest.raises(TrainingError, match="no mature example with a label"):
        carried_out(tables, model(LogisticRegression()), order(as_of=2 * HOUR))

    class Broken(LogisticRegression):  # type: ignore[misc]
        def fit(self, *_: Any) -> Any:
            raise ValueError("no such luck")

    with pytest.raises(TrainingError, match=r"Broken\.fit failed on .* no such luck"):
        carried_out(tables, model(Broken()), order())


def test_a_feature_that_gives_the_label_away_is_warned_about(tables: dict[str, pl.DataFrame]) -> None:
    planted = tables["visits"].join(
        tables["results"].select("id", leak="bad"), on="id", how="left", maintain_order="left"
    )
    warned = carried_out(
        {**tables, "visits": planted}, model(LogisticRegression(), features=["x", "leak"]), order()
    ).judged
    assert any(each["kind"] == "giveaway" and "'leak'" in each["what"] for each in warned["warnings"])
