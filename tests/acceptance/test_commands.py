"""The commands as a user runs them, on a small shop: its orders, its customers, its returns."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from tidemill import project as projects
from tidemill.base.clock import DAY, HOUR, MINUTE, SystemClock, format_time
from tidemill.cli.main import main
from tidemill.loop.supervisor import ServerProcess

SYSTEM = """
import polars as pl
from sklearn.ensemble import HistGradientBoostingClassifier

import tidemill as tm

orders = tm.Source("orders", tm.files("orders/*.csv"), key="order", event_time="placed")
returns = tm.Source("returns", tm.files("returns/*.csv"), key="order", event_time="decided",
                    checks=[tm.between("weight", 0, 100)])
customers = tm.Source("customers", tm.files("customers.csv"), key="customer")


@tm.table("large", key="order", event_time="placed", rows=True)
def large(orders):
    return orders.filter(pl.col("amount") > 50).select("order", "placed", "shop", "amount")


spent = {"spent": tm.mean("amount", over="1d"), "n": tm.count(over="1d")}
shop = tm.Aggregation("shop", orders, by="shop", features=spent)
big = tm.Aggregation("big", large, by="shop", features={"n": tm.count(over="1d")})
person = tm.Latest("person", customers, by="customer", columns=["age"])
back = tm.Model(
    "back", examples=orders, asked_at=tm.after("placed", "1m"),
    label=tm.Label(returns, pl.col("back"), within="6h", otherwise=False),
    features=[shop, big, person, "amount", "shop"],
    estimator=HistGradientBoostingClassifier(max_iter=20, categorical_features="from_dtype", early_stopping=False),
    split=tm.by_time(test="10d"), gate=tm.Gate("roc_auc", min_rows=50),
)
system = tm.System("shop", back, endpoint=tm.Endpoint(port=0), policy=tm.Policy(takes="1s"), tick="1s")
"""
NOW = SystemClock().now() // MINUTE * MINUTE
ORDERS = 40 * 24  # one an hour


def lay_down(folder: Path) -> None:
    chance = random.Random(7)
    (folder / "system.py").write_text(SYSTEM)
    orders, returns = ["order,placed,customer,shop,amount"], ["order,decided,back,weight"]
    for number in range(ORDERS):
        placed = NOW - (ORDERS - number) * HOUR - 10 * MINUTE
        amount, shop = chance.uniform(5, 100), chance.choice("abc")
        orders.append(f"o{number},{format_time(placed)},c{number % 50},{shop},{amount:.2f}")
        if amount > 60 and chance.random() < 0.9:
            returns.append(f"o{number},{format_time(placed + 2 * HOUR)},true,{chance.uniform(0, 20):.1f}")
    returns.append(f"o0,{format_time(NOW - 30 * DAY)},true,1000")  # breaks its check
    customers = ["customer,age", *(f"c{number},{20 + number}" for number in range(50))]
    for name, lines in {"orders/1.csv": orders, "returns/1.csv": returns, "customers.csv": customers}.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("\n".join(lines) + "\n")


def run(folder: Path, *arguments: str) -> Result:
    return CliRunner().invoke(main, [*arguments, "--project", str(folder)])


def data(folder: Path, *arguments: str) -> Any:
    result = run(folder, *arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a project in which nothing has run; the tests leave it so."""
    folder = tmp_path_factory.mktemp("fresh")
    lay_down(folder)
    return folder


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a project with a champion and twenty predictions in the lake."""
    folder = tmp_path_factory.mktemp("built")
    lay_down(folder)
    first = run(folder, "up", "--once")
    assert first.exit_code == 0, first.output
    assert "v1 is champion" in first.output
    assert "returns: 1 row refused; see why with: tidemill quarantine returns" in first.output
    server = ServerProcess(folder / "system.py", 0, folder / "server.txt")
    try:
        for number in range(20):
            row = {"order": f"n{number}", "shop": "abc"[number % 3], "customer": f"c{number}", "amount": 5.0 * number}
            server.call("POST", "/v1/models/back/predict", {"rows": [row]})
    finally:
        server.stop()
    second = run(folder, "up", "--once")
    assert second.exit_code == 0, second.output
    return folder


def test_a_sound_file_passes_and_nothing_is_written(fresh: Path) -> None:
    before = sorted(fresh.rglob("*"))
    result = run(fresh, "check")
    assert result.exit_code == 0, result.output
    assert "All good: 3 sources, 1 table, 3 feature views, 1 model." in result.output
    assert "The cut test passed: large." in result.output
    plan = data(fresh, "plan")
    assert [item["action"] for item in plan["items"]].count("load") == 3
    assert {"action": "train", "what": "model 'back'", "why": ["no version yet"]} in plan["items"]
    assert [path for path in sorted(fresh.rglob("*")) if "__pycache__" not in path.parts] == before


def test_every_fault_comes_at_once(tmp_path: Path) -> None:
    lay_down(tmp_path)
    text = SYSTEM.replace('tm.mean("amount"', 'tm.mean("amont"').replace('between("weight"', 'between("wait"')
    text = text.replace('by="customer", columns=["age"]', 'by="customer", columns=["aged"]')
    (tmp_path / "system.py").write_text(text)
    result = run(tmp_path, "check")
    assert result.exit_code == 1
    for hint in ("Did you mean 'amount'?", "Did you mean 'weight'?", "Did you mean 'age'?"):
        assert hint in result.output
    found = run(tmp_path, "check", "--json")
    assert found.exit_code == 1
    assert len(json.loads(found.stdout)["faults"]) == 3
    assert run(tmp_path, "up", "--once").exit_code == 1
    assert not (tmp_path / ".tidemill").exists()


def test_a_pattern_that_matches_no_file_is_named(tmp_path: Path) -> None:
    lay_down(tmp_path)
    (tmp_path / "system.py").write_text(SYSTEM.replace('"returns/*.csv"', '"retruns/*.csv"'))
    for command in ("check", "plan"):
        noted = data(tmp_path, command)["warnings"]
        assert [each["what"].partition(" in ")[0] for each in noted if each["where"] == "source 'returns'"] == [
            "no file matches 'retruns/*.csv'"
        ]
    done = run(tmp_path, "up", "--once")
    assert "back: no training yet; it waits for the first rows of returns, its labels" in " ".join(done.output.split())


def test_check_refuses_a_table_that_reads_the_future(tmp_path: Path) -> None:
    lay_down(tmp_path)
    whole = 'orders.with_columns(pl.col("amount").mean()).select("order", "placed", "shop", "amount")'
    text = SYSTEM.replace('orders.filter(pl.col("amount") > 50).select("order", "placed", "shop", "amount")', whole)
    (tmp_path / "system.py").write_text(text.replace(", rows=True)\ndef", ")\ndef"))
    result = run(tmp_path, "check")
    assert result.exit_code == 1
    assert "its rows depend on what was not known yet" in " ".join(result.output.split())


@pytest.mark.parametrize(
    "arguments",
    [
        ("status",), ("journal",), ("history", "back"), ("trace", "ab"), ("parity",),
        ("retrain", "back", "--reason", "x"), ("rollback", "back", "--to", "v1", "--reason", "x"),
        ("rebuild", "--reason", "x"),
    ],
)  # fmt: skip
def test_commands_say_when_nothing_has_run(fresh: Path, arguments: tuple[str, ...]) -> None:
    result = run(fresh, *arguments)
    assert result.exit_code == 2
    assert "Nothing has run here yet; start with: tidemill up" in result.output


def test_a_second_run_does_no_work_and_says_so(built: Path) -> None:
    entries = data(built, "status")["journal"]
    result = run(built, "up", "--once")
    assert result.exit_code == 0
    assert result.output.startswith("Nothing new: 4 tables, ")
    assert result.output.rstrip().endswith("back v1, as declared.")
    assert data(built, "status")["journal"] == entries
    assert data(built, "plan")["idle"] is True


def test_status_shows_tables_and_models(built: Path) -> None:
    found = data(built, "status")
    tables = {table["name"]: table for table in found["tables"]}
    assert tables["orders"]["versions"] == ORDERS
    assert tables["returns"]["quarantined"] == 1
    assert tables["predictions"]["versions"] == 20
    champion = found["models"][0]["champion"]
    assert champion["version"] == 1
    assert champion["metrics"]["roc_auc"]["value"] > 0.8
    text = run(built, "status").output
    assert "not serving" in text
    assert max(map(len, text.splitlines())) <= 100


def test_quarantine_shows_what_was_refused_and_why(built: Path) -> None:
    found = data(built, "quarantine", "returns")
    [refused] = found["newest"]
    assert (found["rows"], refused["reason"]) == (1, "'weight' is 1000.0, outside 0 to 100")
    assert json.loads(refused["row"])["order"] == "o0"
    [reason] = found["reasons"]
    assert reason == {"reason": "'weight' is …, outside 0 to 100", "rows": 1, "newest": refused["at"]}
    shown = run(built, "quarantine", "returns", "-n", "1").output
    assert "returns   1 row refused" in shown
    assert '{"order": "o0", "decided"' in shown
    assert data(built, "quarantine", "orders")["reasons"] == []
    assert run(built, "quarantine", "orders").output == "orders has refused no row.\n"
    assert "its inputs are orders" in run(built, "quarantine", "large").output
    assert "Did you mean 'returns'?" in run(built, "quarantine", "return").output


def test_journal_is_filtered_and_canonical(built: Path) -> None:
    lines = run(built, "journal", "--kind", "train", "--kind", "alias", "--model", "back", "--json").output.splitlines()
    entries = [json.loads(line) for line in lines]
    assert [entry["kind"] for entry in entries] == ["train", "alias"]
    journal = projects.open(built).workspace.journal
    kept = {entry.number: entry.body for entry in journal.read()}
    assert all(kept[entry["number"]] == entry["body"] for entry in entries)
    assert "back: v1 is champion" in run(built, "journal").output
    assert "No such entry." in run(built, "journal", "--since", "2999-01-01").output


def test_how_a_version_is_served_and_why_is_told(built: Path) -> None:
    served = projects.open(built).model("back").served
    assert served is not None
    assert served["kind"] == "compiled"
    assert served["why"] == "it equals the estimator bit for bit"
    assert 0 < served["micros"] < served["estimator_micros"]
    assert data(built, "status")["models"][0]["champion"]["served"] == served
    assert data(built, "history", "back")["versions"][0]["served"] == served
    for command in (("status",), ("history", "back")):
        said = " ".join(run(built, *command).output.split())
        assert "compiled, " in said
        assert "it equals the estimator bit for bit, tried on" in said


def test_history_answers_who_was_live(built: Path) -> None:
    found = data(built, "history", "back")
    assert [version["version"] for version in found["versions"]] == [1]
    start = found["tenures"][0]["from"]
    assert data(built, "history", "back", "--at", start)["champion"] == 1
    assert data(built, "history", "back", "--at", "2001-01-01")["champion"] is None
    assert "champion" in run(built, "history", "back").output
    assert "Did you mean 'back'?" in run(built, "history", "bak").output


def test_parity_and_trace_agree_bit_for_bit(built: Path) -> None:
    (found,) = data(built, "parity")
    assert (found["rows"], found["mismatched"], found["skipped"]) == (20, 0, 0)
    assert found["rate_below"] == pytest.approx(1 - 0.05 ** (1 / 20))
    rows = projects.open(built).rows("predictions")
    id = rows["id"][7]
    account = data(built, "trace", id[:10])
    assert account["id"] == id
    assert account["derived_again"] == {"match": True, "why": "", "differences": []}
    assert [entry["kind"] for entry in account["entries"]] == ["train", "judge", "version", "alias"]
    assert account["data"]["orders"]["rows"] == ORDERS
    assert account["data"]["orders"]["storage_version"] >= 1
    assert account["recipe_is_declared"] is True
    assert account["label"]["status"] == "not known yet"
    text = run(built, "trace", id).output
    assert "equal bit for bit" in text
    assert run(built, "trace", "zz").exit_code == 2


def test_parity_finds_a_changed_row(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import polars as pl

    real = projects.Project.rows

    def rows(self: projects.Project, name: str, **options: Any) -> pl.DataFrame:
        frame = real(self, name, **options)
        if name == "customers":
            frame = frame.with_columns(pl.when(pl.col("customer") == "c3").then(99).otherwise("age").alias("age"))
        return frame

    monkeypatch.setattr(projects.Project, "rows", rows)
    result = run(built, "parity", "--json")
    assert result.exit_code == 1
    (found,) = json.loads(result.stdout)
    assert found["mismatched"] == 1
    assert found["by_value"]["person__age"] == 1
    assert found["examples"][0]["logged"] == 23
    assert found["examples"][0]["derived"] == 99


def test_retrain_and_rollback_are_carried_out(tmp_path: Path) -> None:
    lay_down(tmp_path)
    text = SYSTEM.replace("min_rows=50)", "min_rows=50, margin=1.0)")
    (tmp_path / "system.py").write_text(text)
    assert run(tmp_path, "up", "--once").exit_code == 0
    assert run(tmp_path, "rollback", "back", "--to", "v1", "--reason", "x").exit_code == 2  # it is champion already
    assert run(tmp_path, "rollback", "back", "--to", "v9", "--reason", "x").exit_code == 2
    assert "Asked for a training" in run(tmp_path, "retrain", "back", "--reason", "new prices").output
    assert data(tmp_path, "status")["requests"] == [{"kind": "retrain", "model": "back", "reason": "new prices"}]
    up = run(tmp_path, "up", "--once")
    assert "asked for by hand: new prices" in up.output
    # Nothing matured since v1 was fitted, so the gate waits and v1 stays.
    assert data(tmp_path, "status")["models"][0]["champion"]["version"] == 1
    assert data(tmp_path, "status")["requests"] == []


def test_status_shows_how_fresh_each_view_is(built: Path) -> None:
    online = data(built, "status")["online"]
    names = {view["name"] for view in online["views"]}
    assert {"person"} <= names
    assert all(view["newest_known"] for view in online["views"])
    assert online["lag"] > 0
    assert online["rebuilding"] is None
    text = run(built, "status").output
    assert "Feature views" in text
    assert "Online state as of" in text


def test_rebuild_is_carried_out(tmp_path: Path) -> None:
    lay_down(tmp_path)
    assert run(tmp_path, "up", "--once").exit_code == 0
    before = data(tmp_path, "status")["online"]
    assert "Asked for a rebuild" in run(tmp_path, "rebuild", "--reason", "to be sure").output
    assert data(tmp_path, "status")["requests"] == [{"kind": "rebuild", "reason": "to be sure"}]
    assert "rebuild asked for by hand" in run(tmp_path, "up", "--once").output + run(tmp_path, "journal").output
    after = data(tmp_path, "status")
    assert after["requests"] == []
    assert after["online"]["views"] == before["views"]
    assert after["online"]["rebuilding"] is None


def test_rebuild_waits_until_the_new_state_is_there(tmp_path: Path) -> None:
    lay_down(tmp_path)
    assert run(tmp_path, "up", "--once").exit_code == 0
    arguments = ["rebuild", "--reason", "to be sure", "--wait", "--project", str(tmp_path)]
    command = "import sys; from tidemill.cli.main import main; main(sys.argv[1:])"
    waiting = subprocess.Popen([sys.executable, "-c", command, *arguments])
    try:
        while not data(tmp_path, "status")["requests"]:
            assert waiting.poll() is None
            time.sleep(0.1)
        assert run(tmp_path, "up", "--once").exit_code == 0
        assert waiting.wait(timeout=30) == 0
    finally:
        waiting.kill()


_READ_ONLY = """
mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" || exit 99
cd "$0" && for each in status journal predictions "route show" "parity --limit 1"; do
    "$1" -m tidemill.cli.main $each || exit 1
done
! "$1" -m tidemill.cli.main retrain back --reason why
"""


def test_what_cannot_be_written_is_still_read(built: Path) -> None:
    """Mounted so that nobody can write: root, too."""
    inside = ["unshare", "--map-root-user", "--mount", "bash", "-c", _READ_ONLY, str(built), sys.executable]
    try:
        done = subprocess.run(inside, capture_output=True, text=True, timeout=120, check=False)
    except FileNotFoundError:
        pytest.skip("there is no unshare")
    if done.returncode == 99 or "unshare" in done.stderr:
        pytest.skip("nothing may be mounted here")
    assert done.returncode == 0, done.stderr
    assert "v1 since" in done.stdout
    assert "can only be read by who can write it" in " ".join(done.stdout.split())
    assert "v1 is champion" in done.stdout
    assert "can be read, but not written. Let this user write there" in done.stderr


def test_up_serves_until_it_is_told_to_stop(built: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", "from tidemill.cli.main import main; main()", "up", "-p", str(built)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    assert process.stdout is not None
    try:
        assert process.stdout.readline().startswith("Nothing new: 4 tables")
        assert process.stdout.readline().startswith("Serving on http://127.0.0.1:")
        assert data(built, "status")["endpoint"]["champions"] == {"back": 1}
        second = run(built, "up")
        assert second.exit_code == 2
        assert "holds the lease" in second.output
        os.kill(_server(process.pid), signal.SIGKILL)
        assert process.stdout.readline().startswith("The server has ended. It is started again in 1 s.")
        assert process.stdout.readline().startswith("Serving on http://127.0.0.1:")
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        assert "Stopped." in process.stdout.read()
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    assert data(built, "status")["endpoint"] is None


def _server(parent: int) -> int:
    """Return the process id of the server that ``parent`` started."""
    for _ in range(100):
        children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
        children += [
            child
            for task in Path(f"/proc/{parent}/task").iterdir()
            for child in (task / "children").read_text().split()
        ]
        for child in children:
            if b"tidemill.server.main" in Path(f"/proc/{child}/cmdline").read_bytes():
                return int(child)
        time.sleep(0.1)
    raise AssertionError("there is no server")
