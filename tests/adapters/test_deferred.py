from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

DECLARED = """
import tidemill as tm
{imports}

s = tm.Source("s", tm.files("*.csv"), key="id", event_time="at")
m = tm.Model("m", examples=s, asked_at="at", label=tm.Label(s, "x", within="1d"), features=["x"], estimator={estimator})
system = tm.System("s", m)
"""
LOAD = """
import sys
from pathlib import Path
from tidemill.adapters.system_file import load_for_serving, load_system
file = Path(sys.argv[1])
system = load_for_serving(file)
light = not {"sklearn", "xgboost", "lightgbm"} & set(sys.modules)
task = system.models[0].task
shown = repr(system.models[0].estimator)
again = load_system(file).models[0]
assert (again.task, repr(again.estimator)) == (task, shown), (again.task, again.estimator)
assert not type(again.estimator).__module__.startswith("tidemill")
print(light, task)
"""


@pytest.mark.parametrize(
    ("imports", "estimator", "said"),
    [
        ("from sklearn.ensemble import HistGradientBoostingClassifier as H", "H(max_iter=7)", "True classification"),
        ("from sklearn.linear_model import Ridge", "Ridge(alpha=[1.0, 2.0])", "True regression"),
        ("from xgboost import XGBClassifier", "XGBClassifier(n_estimators=3)", "True classification"),
        ("from lightgbm import LGBMRegressor", "LGBMRegressor(n_estimators=3)", "True regression"),
        (
            "from sklearn.pipeline import Pipeline\nfrom sklearn.preprocessing import StandardScaler\n"
            "from sklearn.linear_model import LogisticRegression",
            "Pipeline([('scale', StandardScaler()), ('fit', LogisticRegression(C=2.0))])",
            "True classification",
        ),
        # What is not known by name is asked, and so loaded.
        ("from sklearn.svm import SVC", "SVC(probability=False)", "False classification"),
        ("import sklearn.dummy", "sklearn.dummy.DummyClassifier()", "False classification"),
        (
            "from sklearn.base import BaseEstimator\n"
            "class Mine(BaseEstimator):\n    def predict_proba(self, x): return x",
            "Mine()",
            "False classification",
        ),
        # What does more than declare is run again, with the real library.
        (
            "from sklearn.utils import check_random_state\nseed = 1 + int(check_random_state(3).randint(5))\n"
            "from sklearn.linear_model import Ridge",
            "Ridge(random_state=seed)",
            "False regression",
        ),
    ],
)
def test_a_declaration_is_read_without_its_libraries(imports: str, estimator: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "declared.py"
    file.write_text(DECLARED.format(imports=imports, estimator=estimator))
    run = subprocess.run([sys.executable, "-c", LOAD, str(file)], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == said


def test_a_missing_library_is_missed_as_ever(tmp_path: Path) -> None:
    file = tmp_path / "declared.py"
    file.write_text(DECLARED.format(imports="from sklearn.nothing import X", estimator="X()"))
    run = subprocess.run([sys.executable, "-c", LOAD, str(file)], capture_output=True, text=True, check=False)
    assert "no module named 'sklearn.nothing'" in run.stderr
