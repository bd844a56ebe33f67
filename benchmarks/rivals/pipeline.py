"""The data and the pipelines of the serving benchmarks: 20 numeric and 5 string columns, one of three models."""

from __future__ import annotations

import random
from typing import Any

NUMBERS = [f"n{place:02d}" for place in range(20)]
WORDS = [f"w{place}" for place in range(5)]
LEVELS = (4, 8, 12, 20, 40)
KINDS = ("hgb", "logistic", "xgboost")


def rows(many: int, seed: int = 3) -> list[dict[str, Any]]:
    """Return rows with their label ``y`` (0 or 1). About one number in twenty is not known."""
    chance = random.Random(seed)
    made = []
    for _ in range(many):
        numbers = [chance.gauss(0, 1) for _ in NUMBERS]
        words = [chance.randrange(levels) for levels in LEVELS]
        score = (
            numbers[0] - 0.7 * numbers[1] * numbers[2] + 0.4 * (numbers[3] > 0.5) + 0.05 * words[4] - 1 + 0.2 * words[0]
        )
        row: dict[str, Any] = {
            name: None if chance.random() < 0.05 else round(value, 6)
            for name, value in zip(NUMBERS, numbers, strict=True)
        }
        row.update({name: f"{name}-{word}" for name, word in zip(WORDS, words, strict=True)})
        made.append({**row, "y": int(score + chance.gauss(0, 1) > 0)})
    return made


def estimator(kind: str) -> Any:
    """Return the unfitted pipeline: imputed and scaled numbers, encoded words, then the model ``kind``."""
    from sklearn.compose import ColumnTransformer
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import Pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    def model() -> Any:
        if kind == "hgb":
            return HistGradientBoostingClassifier(max_iter=100, early_stopping=False, random_state=0)
        if kind == "logistic":
            return LogisticRegression(max_iter=500)
        from xgboost import XGBClassifier

        return XGBClassifier(n_estimators=100, max_depth=6, n_jobs=1, random_state=0)

    numbers = Pipeline([("impute", SimpleImputer(strategy="median")), ("scale", StandardScaler())])
    words = OneHotEncoder(handle_unknown="ignore", sparse_output=False)
    columns = ColumnTransformer([("numbers", numbers, NUMBERS), ("words", words, WORDS)])
    return Pipeline([("columns", columns), ("model", model())])
