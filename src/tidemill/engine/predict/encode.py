"""What an estimator sees: feature columns turned into numbers and learned categories, the same way everywhere.

Numbers and booleans become float64 with null as NaN; strings become categories learned on the training rows, where a
value not seen then is null. A column that is null on every training row is dropped and recorded, for some estimators
crash on it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from tidemill.base.errors import TrainingError


@dataclass(frozen=True, slots=True)
class Encoding:
    """The estimator's input columns in order.

    ``categories`` maps a string column to its values in the order of first use by the estimator (sorted); every other
    column is a number. ``dropped`` names columns that were null on every training row. ``classes`` are the label's
    values for a classification, sorted; empty for a regression.
    """

    columns: tuple[str, ...]
    categories: Mapping[str, tuple[str, ...]]
    dropped: tuple[str, ...]
    classes: tuple[Any, ...]

    def frame(self, features: pl.DataFrame) -> pl.DataFrame:
        """Return the estimator's input for ``features``: Float64 and Enum columns, one row for each."""
        return features.select(
            pl.col(name).cast(pl.Enum(self.categories[name]), strict=False)
            if name in self.categories
            else pl.col(name).cast(pl.Float64).fill_null(float("nan"))
            for name in self.columns
        )

    def truth(self, label: pl.Series) -> np.ndarray[Any, Any]:
        """Return labels as float64: the class's index for a classification, the value for a regression."""
        if not self.classes:
            return label.cast(pl.Float64).to_numpy()
        index = {value: float(i) for i, value in enumerate(self.classes)}
        return np.array([index[value] for value in label], dtype=np.float64)

    def as_json(self) -> dict[str, Any]:
        """Return the encoding as plain JSON data."""
        return {
            "columns": list(self.columns),
            "categories": {name: list(values) for name, values in self.categories.items()},
            "dropped": list(self.dropped),
            "classes": list(self.classes),
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Encoding:
        """Return the encoding that ``as_json`` wrote."""
        return Encoding(
            tuple(data["columns"]),
            {name: tuple(values) for name, values in data["categories"].items()},
            tuple(data["dropped"]),
            tuple(data["classes"]),
        )


def learn(features: pl.DataFrame, label: pl.Series, *, classify: bool) -> Encoding:
    """Learn the encoding from training rows. Raises TrainingError when a column's type is not one a model can take."""
    dropped = tuple(name for name in features.columns if features[name].null_count() == features.height)
    columns, categories = [], {}
    for name, dtype in features.schema.items():
        if name in dropped:
            continue
        if dtype == pl.String or dtype == pl.Categorical or isinstance(dtype, pl.Enum):
            categories[name] = tuple(features[name].cast(pl.String).drop_nulls().unique().sort())
        elif not (dtype.is_numeric() or dtype == pl.Boolean):
            raise TrainingError(
                f"Feature {name!r} is a {dtype}; an estimator takes numbers, booleans and strings. "
                "Derive one with tm.OnDemand (an hour, a distance in time) and use that instead."
            )
        columns.append(name)
    classes: tuple[Any, ...] = ()
    if classify:
        classes = tuple(sorted(label.drop_nulls().unique().to_list()))
        if len(classes) < 2:
            raise TrainingError(
                f"All {label.len()} training labels are {classes[0]!r}; a classifier needs two. "
                "Look at the label's expression, or wait for more rows."
                if classes
                else "There are no training labels."
            )
    return Encoding(tuple(columns), categories, dropped, classes)
