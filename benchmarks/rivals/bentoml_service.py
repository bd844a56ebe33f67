"""The fitted pipeline as a BentoML service; ``RIVAL_MODEL`` names its file."""

from __future__ import annotations

import os
from typing import Any

import bentoml


@bentoml.service(workers=1, logging={"access": {"enabled": False}})
class Late:
    """Answers one row with the probability of the second class."""

    def __init__(self) -> None:
        import joblib

        self.model = joblib.load(os.environ["RIVAL_MODEL"])

    @bentoml.api
    def predict(self, row: dict[str, Any]) -> float:
        """Return the probability of the second class."""
        import pandas as pd

        return float(self.model.predict_proba(pd.DataFrame([row]))[0, 1])
