"""A server whose champion has a compiled form runs without scikit-learn and answers as the estimator does."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import polars as pl

import tidemill.project as projects
from tidemill.engine.feature.online import OnlineState
from tidemill.engine.predict.encode import learn
from tidemill.engine.predict.predict import Predictor
from tidemill.engine.train.form import choose
from tidemill.ports.journal import Draft
from tidemill.workspace import FORMS

SYSTEM = """
import tidemill as tm
from sklearn.compose import make_column_transformer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

flights = tm.Source("flights", tm.push(), key="id", event_time="at")
landed = tm.Source("landed", tm.files("landed/*.csv"), key="id", event_time="at")
columns = make_column_transformer(
    (make_pipeline(SimpleImputer(), StandardScaler()), ["distance"]),
    (OneHotEncoder(handle_unknown="ignore"), ["origin"]),
)
late = tm.Model(
    "late", examples=flights, asked_at="at", label=tm.Label(landed, "late", within="1d"),
    features=["distance", "origin"], estimator=make_pipeline(columns, LogisticRegression()),
)
system = tm.System("stage", late)
"""
SERVE = """
import json, sys
from pathlib import Path
from tidemill.server.main import serving
from tidemill.workspace import open_served

served = serving(open_served(Path(sys.argv[1])))
served.refresh()
assert not served.troubles, served.troubles
kept = served.predict("late", json.dumps({"rows": json.loads(sys.argv[2])}).encode())
print(json.dumps({
    "answers": [each.prediction for each in kept.answers],
    "loaded": sorted({name.partition(".")[0] for name in sys.modules} & {"sklearn", "pandas", "skops", "onnxruntime"}),
}))
served.close()
"""


def test_a_server_needs_no_scikit_learn(tmp_path: Path) -> None:
    (tmp_path / "system.py").write_text(SYSTEM)
    project = projects.open(tmp_path)
    random = np.random.default_rng(1)
    rows = pl.DataFrame(
        {"distance": random.normal(size=400) * 100, "origin": random.choice(["EWR", "JFK", "LGA"], 400).tolist()}
    )
    label = pl.Series(rows["distance"].to_numpy() + random.normal(size=400) * 50 > 0)
    encoding = learn(rows, label, classify=True)
    estimator = project.system.models[0].estimator.fit(encoding.frame(rows), encoding.truth(label))
    chosen = choose(Predictor(encoding, estimator), rows, FORMS)
    assert chosen.kind == "compiled", chosen.report
    workspace = project.workspace
    step = {
        "estimator": workspace.models.save(estimator),
        "served": chosen.store(workspace.models),
        "encoding": encoding.as_json(),
        "request": {"id": "String", "distance": "Float64", "origin": "String"},
    }
    lease = workspace.journal.acquire()
    workspace.journal.record_step("training", step, lease)
    made = {"model": "late", "version": 1, "training": "training", "recipe": "r", "as_of": 0}
    pointed = {"model": "late", "alias": "champion", "version": 1, "previous": None, "reasons": []}
    workspace.journal.append([Draft(0, "version", made), Draft(0, "alias", pointed)], lease)
    OnlineState(project.system.views, workspace.online).apply(1_000_000, {}, {}, 2)
    lease.release()

    asked = [{"id": str(i), "distance": d, "origin": o} for i, (d, o) in enumerate([(10.5, "JFK"), (None, "XYZ")])]
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SERVE), str(tmp_path), json.dumps(asked)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    said = json.loads(run.stdout)
    assert said["loaded"] == []
    frame = pl.DataFrame(asked).select("distance", "origin")
    assert said["answers"] == project.load_predictor("late", "training").predict(frame).tolist()
    np.testing.assert_allclose(said["answers"], Predictor(encoding, estimator).predict(frame), rtol=1e-12)
