"""Batch prediction: a million rows of 25 columns from Parquet to Parquet, against pandas and scikit-learn.

Both sides learn from the same rows with the same estimator (boosted trees; logistic regression over imputed, scaled and
one-hot columns), then read one Parquet file, predict, and write keys and probabilities to another. The rival is what a
user writes: ``pandas.read_parquet``, ``predict_proba``, ``to_parquet``. Each run is a process of its own; what is timed
begins when its libraries and its model are loaded and, for us, when the project is open.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path

import common

GOALS = {"trees": 2.0, "linear": 8.0}
PEAK = 1_000  # MB
NUMBERS, TEXTS = 20, 5

MODELS = """
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

numbers = [f"x{place}" for place in range(20)]
texts = [f"s{place}" for place in range(5)]
trees = HistGradientBoostingClassifier(categorical_features="from_dtype", max_iter=100, random_state=1)
linear = make_pipeline(
    ColumnTransformer([("numbers", make_pipeline(SimpleImputer(), StandardScaler()), numbers),
                       ("texts", OneHotEncoder(handle_unknown="ignore", sparse_output=False), texts)]),
    LogisticRegression(max_iter=300),
)
"""

SYSTEM = (
    MODELS
    + """
import tidemill as tm

asked = tm.Source("asked", tm.files("asked.parquet"), key="id", event_time="at", known_at=tm.before("at", "1h"))
came = tm.Source("came", tm.files("came.parquet"), key="id", event_time="at")
common = dict(examples=asked, asked_at="at", label=tm.Label(came, "y", within="1h"), features=[*numbers, *texts],
              split=tm.by_time(test="30d"))
models = [tm.Model("trees", estimator=trees, **common), tm.Model("linear", estimator=linear, **common)]
system = tm.System("bench", *models,
                   policy=tm.Policy(retrain=[], takes="1s"))
"""
)

LEARN = (
    MODELS
    + """
import sys, json, joblib, pandas as pd
folder = sys.argv[1]
rows = pd.read_parquet(f"{folder}/asked.parquet").merge(pd.read_parquet(f"{folder}/came.parquet")[["id", "y"]], on="id")
for text in texts:
    rows[text] = rows[text].astype("category")
for name, model in {"trees": trees, "linear": linear}.items():
    joblib.dump((model.fit(rows[numbers + texts], rows["y"]),
                 {text: rows[text].cat.categories for text in texts}), f"{folder}/{name}.joblib")
print("{}")
"""
)

RIVAL = (
    MODELS
    + """
import sys, json, time, joblib, pandas as pd
folder, name, out = sys.argv[1:]
model, categories = joblib.load(f"{folder}/{name}.joblib")
begun = time.perf_counter()
rows = pd.read_parquet(f"{folder}/new.parquet")
columns = rows[numbers + texts]
if name == "trees":
    columns = columns.assign(**{text: pd.Categorical(rows[text], categories[text]) for text in texts})
made = pd.DataFrame({"id": rows["id"], "prediction": model.predict_proba(columns)[:, 1]})
made.to_parquet(out)
took = time.perf_counter() - begun
peak = int(open("/proc/self/status").read().partition("VmHWM:")[2].split()[0]) / 1024
print(json.dumps({"seconds": took, "peak": peak}))
"""
)


def make(folder: Path, rows: int) -> None:
    """Write what both sides learn from, and the rows to predict for."""
    import numpy as np
    import polars as pl

    rng = np.random.default_rng(11)

    def frame(count: int, first: int) -> pl.DataFrame:
        numbers = rng.normal(size=(count, NUMBERS))
        numbers[rng.random(numbers.shape) < 0.02] = np.nan
        texts = rng.integers(0, 12, (count, TEXTS))
        names = np.array([f"kind-{each}" for each in range(12)])
        at = 1_700_000_000_000_000 + np.arange(count) * 600_000_000
        columns = {f"x{place}": pl.Series(numbers[:, place]).fill_nan(None) for place in range(NUMBERS)}
        columns |= {f"s{place}": pl.Series(names[texts[:, place]]) for place in range(TEXTS)}
        columns["id"] = pl.Series(np.arange(first, first + count))
        return pl.DataFrame({**columns, "at": pl.Series(at).cast(pl.Datetime("us", "UTC"))})

    known = frame(20_000, 0)
    signal = known.select(pl.col("x0").fill_null(0) + pl.col("x1").fill_null(0) ** 2 - (pl.col("s0") == "kind-3") * 2)
    known.write_parquet(folder / "asked.parquet")
    label = (signal.to_series() + rng.normal(size=known.height) > 1).alias("y")
    known.select("id", pl.col("at") + pl.duration(minutes=1)).with_columns(label).write_parquet(folder / "came.parquet")
    frame(rows, 1_000_000).drop("at").write_parquet(folder / "new.parquet")


def learn(folder: Path) -> None:
    """Train both models as ``tidemill up`` does, in a project in ``folder``."""
    from tidemill import project as projects

    (folder / "system.py").write_text(SYSTEM)
    project = projects.open(folder)
    lease = project.workspace.journal.acquire()
    mill = project.mill(lease)
    mill.start()
    for tick in (1_712_200_000_000_000, 1_712_200_002_000_000):
        mill.tick(tick)
    mill.stop()
    project.workspace.online.close()
    lease.release()
    for name in GOALS:
        known = project.state().model(name)
        assert "champion" in known.aliases, f"{name} was not promoted: {known.judged}"


def ours(folder: Path, name: str, out: str) -> dict[str, float]:
    """Predict for the new rows; return seconds and the peak of memory in MB."""
    from tidemill import batch
    from tidemill import project as projects

    project = projects.open(folder)
    project.model(name)  # its libraries are loaded, as the rival's are
    begun = time.perf_counter()
    batch.predict(project, name, [folder / "new.parquet"], output=out, overwrite=True)
    took = time.perf_counter() - begun
    return {"seconds": took, "peak": common.peak()}


def same(mine: Path, theirs: Path, rows: int) -> bool:
    """Tell whether both sides predicted every row, and alike: they learned apart, so to a few digits."""
    import numpy as np
    import polars as pl

    left, right = pl.read_parquet(mine), pl.read_parquet(theirs)
    gap = np.abs(left["prediction"].to_numpy() - right["prediction"].to_numpy())
    return left.height == rows and left["id"].equals(right["id"]) and float(np.median(gap)) < 0.02


def main() -> None:
    """Run it."""
    given = common.arguments(__doc__)
    rows = 200_000 if given.quick else 1_000_000
    rival = common.rival("pandas-sklearn", "pandas==3.1.1", "scikit-learn==1.9.1", "pyarrow==26.0.1")
    goals, peaks = {}, {"ours": 0.0, "rival": 0.0}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        common.say(f"making {rows:,} rows and training both models on both sides")
        make(folder, rows)
        common.ask(rival, LEARN, name)
        learn(folder)
        for model, limit in GOALS.items():

            def run(side: str, model: str = model) -> float:
                where = [name, model, str(folder / f"{side}-{model}.parquet")]
                answer = (
                    common.ask(sys.executable, Path(__file__), "--ours", *where)
                    if side == "ours"
                    else common.ask(rival, RIVAL, *where)
                )
                peaks[side] = max(peaks[side], answer["peak"])
                common.say(f"{model}, {side}: {answer['seconds']:.2f} s, {answer['peak']:,.0f} MB")
                return float(answer["seconds"])

            sides = {side: lambda side=side: run(side) for side in peaks}
            figures = common.medians(common.alternate(sides, rounds=2 if given.quick else 3, warm=1))
            goals[model] = common.goal(figures["ours"], figures["rival"], limit, holds=">=", of="rival / ours")
            alike = same(folder / f"ours-{model}.parquet", folder / f"rival-{model}.parquet", rows)
            goals[model]["ok"] = bool(goals[model]["ok"] and alike and peaks["ours"] <= PEAK)
    common.finish(
        "batch",
        goals["trees"],
        quick=given.quick,
        others={"linear": goals["linear"]},
        rows=rows,
        peak_mb={side: round(peak) for side, peak in peaks.items()},
        peak_goal_mb=PEAK,
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--ours"]:
        print(json.dumps(ours(Path(sys.argv[2]), sys.argv[3], sys.argv[4])))
    else:
        main()
