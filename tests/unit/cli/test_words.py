from __future__ import annotations

from tidemill.base.clock import DAY, HOUR, SECOND
from tidemill.cli.backtest import long
from tidemill.cli.words import answer, decisions, doubtful, figure, rebuild, refused_rows, sentence, serving, when
from tidemill.ports.journal import Entry


def test_a_figure_shows_its_interval_when_there_is_one() -> None:
    assert figure({"value": 0.46124, "low": 0.451, "high": 0.4713}) == "0.4612 [0.4510, 0.4713]"
    assert figure({"value": 0.5, "low": None, "high": None}) == "0.5000"
    assert figure({"value": None, "low": None, "high": None}) == "not known"
    assert figure(None) == "not known"


def test_how_a_version_is_served_is_said_with_its_cost_and_why() -> None:
    report = {"why": "it equals the estimator bit for bit", "rows": 1200, "thresholds": 310, "probed": 300, "bytes": 9,
              "micros": 2.44, "estimator_micros": 812.5}  # fmt: skip
    assert serving({"kind": "compiled", **report}) == (
        "compiled, 2.4 µs a row (by the estimator 812 µs): it equals the estimator bit for bit, tried on 1,200 rows "
        "and 300 of 310 thresholds"
    )
    itself = {"kind": "estimator", "why": "not compiled: no compiler", "micros": 812.5, "estimator_micros": 812.5}
    assert serving(itself) == "by the estimator itself, 812 µs a row: not compiled: no compiler"
    assert serving({"kind": "onnx", "why": "near", "rows": 5}) == "by ONNX Runtime: near, tried on 5 rows"
    assert "not known" in serving(None)


def test_an_answer_is_a_number_or_the_likeliest_class() -> None:
    assert answer(31.62345, ()) == "31.62"
    assert answer([0.1, 0.75, 0.15], ["a", "b", "c"]) == "b (0.75)"
    assert answer([0.1, 0.75, 0.15], ()) == "0.1, 0.75, 0.15"  # by a version whose training is not known


def test_what_is_doubtful_is_said() -> None:
    warned = [{"kind": "few_rows", "where": "m", "what": "has 30 rows.", "do": "Wait for more."}]
    assert doubtful({"warnings": warned, "dropped": ["a", "b"]}) == [
        "has 30 rows. Wait for more.", "Null on every training row, and so left out: a, b.",
    ]  # fmt: skip
    assert doubtful({"warnings": [], "dropped": []}) == []


def test_how_far_a_rebuild_is_is_said_with_the_time_left() -> None:
    assert rebuild("arrivals", 0, 9, None) == "reading arrivals: 0 of 9 steps done"
    assert rebuild("arrivals", 3, 9, 72.4) == "reading arrivals: 3 of 9 steps done, about 1m12s left"


def test_a_rehearsal_of_many_ticks_says_how_to_shorten_it() -> None:
    assert long(0, 30 * DAY, HOUR) == ""
    assert long(0, 30 * DAY, SECOND).startswith("There are 2,592,000 ticks of 1s for each policy.")


def test_times_are_shown_to_the_minute() -> None:
    assert when(1_380_607_259_000_000) == "2013-10-01 06:00"


def test_a_commit_takes_note_and_decides_nothing() -> None:
    entry = Entry(1, 0, "commit", {"table": "orders", "rows": 1200, "quarantined": 3})
    assert decisions(entry) == []
    assert sentence(entry) == "orders: 1,200 rows, 3 quarantined"
    assert refused_rows(entry.body) == "orders: 3 rows refused; see why with: tidemill quarantine orders"


def test_a_source_that_stands_still_is_named_once() -> None:
    body = {"source": "orders", "reason": "source 'orders': the columns of b.csv are not the contract's."}
    assert sentence(Entry(1, 0, "halt", body)) == (
        "source orders stands still: the columns of b.csv are not the contract's."
    )


def test_a_promotion_names_what_it_replaces() -> None:
    body = {"model": "late", "alias": "champion", "version": 2, "previous": 1, "reasons": []}
    assert sentence(Entry(9, 0, "alias", body)) == "late: v2 is champion, in place of v1"
