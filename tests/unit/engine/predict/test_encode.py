"""What an estimator sees."""

from __future__ import annotations

import json

import numpy as np
import polars as pl
import pytest

from tidemill.base.errors import TrainingError
from tidemill.engine.predict.encode import Encoding, learn

FRAME = pl.DataFrame(
    {
        "n": [1, None, 3],
        "x": [0.5, 1.5, None],
        "flag": [True, None, False],
        "text": ["b", "a", None],
        "none": pl.Series([None, None, None], dtype=pl.Float64),
    }
)
LABEL = pl.Series([True, False, True])


def test_numbers_and_booleans_become_float64_with_nan_and_strings_categories() -> None:
    encoding = learn(FRAME, LABEL, classify=True)
    seen = encoding.frame(FRAME)
    assert encoding.columns == ("n", "x", "flag", "text")
    assert encoding.dropped == ("none",)
    assert encoding.categories == {"text": ("a", "b")}
    assert seen.schema == {"n": pl.Float64, "x": pl.Float64, "flag": pl.Float64, "text": pl.Enum(["a", "b"])}
    np.testing.assert_array_equal(seen["flag"].to_numpy(), [1.0, np.nan, 0.0])
    np.testing.assert_array_equal(seen["n"].to_numpy(), [1.0, np.nan, 3.0])


def test_a_value_not_seen_in_training_is_null() -> None:
    encoding = learn(FRAME, LABEL, classify=True)
    later = FRAME.with_columns(text=pl.Series(["b", "new", "a"]))
    assert encoding.frame(later)["text"].cast(pl.String).to_list() == ["b", None, "a"]


def test_rows_alone_and_together_are_encoded_alike() -> None:
    encoding = learn(FRAME, LABEL, classify=True)
    together = encoding.frame(FRAME)
    for row in range(FRAME.height):
        assert encoding.frame(FRAME[row : row + 1]).equals(together[row : row + 1])


def test_truth_is_the_position_of_the_class_or_the_value() -> None:
    texts = pl.Series(["no", "yes", "maybe"])
    encoding = learn(FRAME, texts, classify=True)
    assert encoding.classes == ("maybe", "no", "yes")
    assert encoding.truth(texts).tolist() == [1.0, 2.0, 0.0]
    assert learn(FRAME, pl.Series([1, 2, 3]), classify=False).truth(pl.Series([5, 6, 7])).tolist() == [5.0, 6.0, 7.0]


def test_an_encoding_survives_json() -> None:
    encoding = learn(FRAME, LABEL, classify=True)
    assert Encoding.from_json(json.loads(json.dumps(encoding.as_json()))) == encoding


def test_a_column_that_no_estimator_takes_is_refused_with_the_way_out() -> None:
    times = FRAME.with_columns(at=pl.datetime(2020, 1, 1, time_zone="UTC"))
    with pytest.raises(TrainingError, match=r"'at' is a Datetime.*OnDemand"):
        learn(times, LABEL, classify=True)


def test_one_class_alone_cannot_be_learned() -> None:
    with pytest.raises(TrainingError, match="All 3 training labels are True"):
        learn(FRAME, pl.Series([True, True, True]), classify=True)
