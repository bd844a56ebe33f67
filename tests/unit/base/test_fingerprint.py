"""Code fingerprints: what changes them, what does not, and that they are equal in every process."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest

from tidemill.base.errors import FingerprintError
from tidemill.base.fingerprint import code_fingerprint, describe_code, estimator_fingerprint

Load = Callable[..., Any]


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """Return ``load(text, name="f", **files)``: writes modules to a new folder and returns an object."""
    count = 0

    def load_one(text: str, name: str = "f", **files: str) -> Any:
        nonlocal count
        count += 1
        folder = tmp_path / str(count)
        folder.mkdir()
        for module, content in files.items():
            (folder / f"{module}.py").write_text(textwrap.dedent(content))
            monkeypatch.delitem(sys.modules, module, raising=False)
        path = folder / "subject.py"
        path.write_text(textwrap.dedent(text))
        spec = spec_from_file_location("subject", path)
        assert spec is not None
        assert spec.loader is not None
        module_object = module_from_spec(spec)
        monkeypatch.setitem(sys.modules, "subject", module_object)
        monkeypatch.syspath_prepend(str(folder))
        spec.loader.exec_module(module_object)
        return getattr(module_object, name)

    return load_one


BASE = """
    import math
    import helpers
    LIMIT = 15
    def inner(x):
        return x + 1
    def f(x, *, scale=2):
        return math.floor(inner(x) * scale > LIMIT) + helpers.twice(x)
"""
HELPERS = """
    import numpy as np
    FACTOR = 2
    def twice(x):
        return x * FACTOR
    def unrelated(x):
        return np.log1p(x)
"""


def test_layout_comments_and_docstrings_do_not_matter(load: Load) -> None:
    dressed = '''
    """A module."""
    import math
    import helpers

    LIMIT = 15  # minutes
    def inner(x):
        "Add one."
        return (
            x + 1
        )
    UNUSED = object()
    def f(x,
          *, scale=2):
        """Say much."""
        # and more
        return math.floor(inner(x) * scale > LIMIT) + helpers.twice(x)
    '''
    assert code_fingerprint(load(BASE, helpers=HELPERS)) == code_fingerprint(load(dressed, helpers=HELPERS))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("x + 1", "x + 2"),
        ("LIMIT = 15", "LIMIT = 16"),
        ("LIMIT = 15", "LIMIT = 15.0"),
        ("scale=2", "scale=3"),
        ("> LIMIT", ">= LIMIT"),
        ("math.floor", "math.ceil"),
    ],
)
def test_what_it_computes_matters(load: Load, old: str, new: str) -> None:
    before = code_fingerprint(load(BASE, helpers=HELPERS))
    assert old in BASE
    assert code_fingerprint(load(BASE.replace(old, new), helpers=HELPERS)) != before


def test_the_projects_modules_are_followed_name_by_name(load: Load) -> None:
    before = code_fingerprint(load(BASE, helpers=HELPERS))
    assert code_fingerprint(load(BASE, helpers=HELPERS.replace("FACTOR = 2", "FACTOR = 3"))) != before
    assert code_fingerprint(load(BASE, helpers=HELPERS.replace("x * FACTOR", "FACTOR * x"))) != before
    assert code_fingerprint(load(BASE, helpers=HELPERS.replace("log1p", "log"))) == before


def test_a_module_passed_on_whole_counts_whole(load: Load) -> None:
    text = """
        import helpers
        def f(x):
            return getattr(helpers, x)
    """
    before = code_fingerprint(load(text, helpers=HELPERS))
    assert code_fingerprint(load(text, helpers=HELPERS.replace("log1p", "log"))) != before


def test_a_module_imported_inside_the_function_counts_whole(load: Load) -> None:
    text = """
        def f(x):
            from helpers import twice
            return twice(x)
    """
    before = describe_code(load(text, helpers=HELPERS))
    assert before != describe_code(load(text, helpers=HELPERS.replace("FACTOR = 2", "FACTOR = 3")))
    assert "numpy" in before["versions"]


def test_versions_of_installed_distributions_are_named(load: Load) -> None:
    text = """
        import polars as pl
        from sklearn.metrics import roc_auc_score
        def f(truth, prediction):
            return roc_auc_score(truth, prediction) + pl.Series(truth).mean()
    """
    versions = describe_code(load(text))["versions"]
    import polars
    import sklearn

    assert versions == {"polars": polars.__version__, "scikit-learn": sklearn.__version__}


def test_two_names_that_swap_their_functions_are_a_change(load: Load) -> None:
    text = """
        def one(x): return 1
        def two(x): return 2
        a, b = one, two
        def f(x): return a(x) - b(x)
    """
    assert code_fingerprint(load(text)) != code_fingerprint(load(text.replace("a, b = one, two", "a, b = two, one")))


def test_closures_lambdas_and_partials_count_by_value(load: Load) -> None:
    text = """
        import functools
        def make(k):
            def inner(x): return x * k
            return inner
        def add(x, y): return x + y
        two, three, two_again = make(2), make(3), make(2)
        first, second = (lambda x: x + 1), (lambda x: x + 2)
        partials = functools.partial(add, 1), functools.partial(add, y=1)
        pair = make(make(2)), make(make(3))
        nested = lambda x: (lambda y: x + y)
    """
    assert code_fingerprint(load(text, "two")) == code_fingerprint(load(text, "two_again"))
    names = ("two", "three", "first", "second", "nested", "add")
    prints = [code_fingerprint(load(text, name)) for name in names]
    prints += [code_fingerprint(each) for name in ("partials", "pair") for each in load(text, name)]
    assert len(set(prints)) == len(prints)
    assert code_fingerprint(load(text, "first")) == code_fingerprint(load("f = lambda x: (x + 1)"))


def test_methods_and_callable_objects_bring_their_class_and_state(load: Load) -> None:
    text = """
        import dataclasses
        BASE = 1
        class Parent:
            def start(self): return BASE
        class Cost(Parent):
            def __init__(self, price): self.price = price
            def __call__(self, x): return self.start() + self.price * x
            def apply(self, x): return self(x)
        @dataclasses.dataclass(frozen=True)
        class Rate:
            value: float
            def apply(self, x): return x * self.value
        cost, dear = Cost(1), Cost(2)
        method = cost.apply
        rate = Rate(0.5)
        def f(x): return rate.apply(x)
    """
    before = {name: code_fingerprint(load(text, name)) for name in ("cost", "dear", "method", "f")}
    assert len(set(before.values())) == 4
    for name in ("cost", "method"):
        assert code_fingerprint(load(text.replace("BASE = 1", "BASE = 2"), name)) != before[name]
        assert code_fingerprint(load(text.replace("price * x", "price / x"), name)) != before[name]
    assert code_fingerprint(load(text.replace("Rate(0.5)", "Rate(0.25)"))) != before["f"]
    assert code_fingerprint(load(text.replace("x * self.value", "x + self.value"))) != before["f"]


def test_recursion_wrappers_and_caches_end(load: Load) -> None:
    text = """
        import functools
        def shout(function):
            @functools.wraps(function)
            def wrapper(*args): return function(*args) + 1
            return wrapper
        def even(n): return n == 0 or odd(n - 1)
        def odd(n): return n != 0 and even(n - 1)
        @functools.cache
        def cached(n): return even(n)
        @shout
        def f(n): return cached(n)
    """
    before = code_fingerprint(load(text))
    assert code_fingerprint(load(text.replace("n != 0", "n > 0"))) != before
    assert code_fingerprint(load(text.replace("+ 1", "+ 2"))) != before


@pytest.mark.parametrize(
    "value",
    [
        "threading.Lock()",
        "open(os.devnull)",
        "np.random.default_rng(0)",
        "random.Random(0)",
        "iter([1])",
        "(x for x in [1])",
        "{'deep': [1, threading.Lock()]}",
    ],
)
def test_a_value_without_lasting_content_is_refused_by_name(load: Load, value: str) -> None:
    text = f"""
        import os, random, threading
        import numpy as np
        STATE = {value}
        def f(x): return STATE
    """
    function = load(text)
    with pytest.raises(FingerprintError, match=r"subject\.STATE"):
        code_fingerprint(function)
    if hasattr(function.__globals__["STATE"], "close"):
        function.__globals__["STATE"].close()


def test_a_value_that_contains_itself_is_refused(load: Load) -> None:
    with pytest.raises(FingerprintError, match="contains itself"):
        code_fingerprint(load("LOOP = []\nLOOP.append(LOOP)\ndef f(x): return LOOP"))


def test_code_without_source_is_refused() -> None:
    space: dict[str, Any] = {}
    exec("def f(x): return x", space)
    with pytest.raises(FingerprintError, match="cannot be read"):
        code_fingerprint(space["f"])


VALUES = [
    "None", "True", "1", "1.0", "-0.0", "0.0", "float('nan')", "float('inf')", "'1'", "b'1'", "[1, 2]", "[2, 1]",
    "{1, 2}",
    "{'a': 1}", "{'a': 2}", "{1: 'a'}", "dt.date(2013, 1, 1)", "dt.datetime(2013, 1, 1)", "dt.timedelta(1)",
    "np.array([1, 2])", "np.array([1, 2], dtype='f4')", "np.array([[1, 2]])", "np.float64(1)", "np.array(['a', None])",
    "re.compile('a')", "re.compile('a', re.I)", "decimal.Decimal('1.0')", "zoneinfo.ZoneInfo('America/New_York')",
    "np.log1p", "np.log", "len", "math.floor", "operator.itemgetter(1)", "operator.itemgetter(2)",
    "pl.col('x') > 1",
    "pl.col('x') > 2", "pl.DataFrame({'a': [1]})", "pl.DataFrame({'a': [2]})", "pl.Int64", "pl.Int32",
    "pl.Datetime('us')",
    "collections.OrderedDict(a=1)", "collections.defaultdict(int)", "Colour.RED", "Colour.BLUE",
    "np.mean", "np.arange(0)",
]  # fmt: skip
ALL_VALUES = f"""
import collections, datetime as dt, decimal, enum, math, operator, re, zoneinfo
import numpy as np, polars as pl
class Colour(enum.Enum):
    RED = 1
    BLUE = 2
VALUES = [{", ".join(VALUES)}]
def make(value):
    def f(x): return value
    return f
def sets(x): return {{"beta", "alpha", "gamma", x}} & STRINGS
STRINGS = frozenset({{"beta", "alpha", "gamma"}})
functions = [*map(make, VALUES), sets]
"""


def test_values_that_differ_have_different_fingerprints(load: Load) -> None:
    prints = [code_fingerprint(function) for function in load(ALL_VALUES, "functions")]
    assert len(set(prints)) == len(VALUES) + 1


def test_fingerprints_are_equal_across_processes(tmp_path: Path) -> None:
    (tmp_path / "subject.py").write_text(ALL_VALUES)
    script = (
        "import subject; from sklearn.ensemble import HistGradientBoostingClassifier as H;"
        "from tidemill.base.fingerprint import *; from tidemill.base import fingerprint as p;"
        "print([p.code_fingerprint(f) for f in subject.functions], p.estimator_fingerprint(H()))"
    )
    outputs = set()
    for seed in ("0", "4242"):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(tmp_path)}
        outputs.add(
            subprocess.run([sys.executable, "-c", script], env=environment, check=True, capture_output=True).stdout
        )
    assert len(outputs) == 1


ESTIMATORS = """
    import numpy as np
    from sklearn.base import BaseEstimator, TransformerMixin
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import FunctionTransformer, StandardScaler
    OFFSET = 1
    def shift(x): return x + OFFSET
    class Clip(TransformerMixin, BaseEstimator):
        def __init__(self, high=1.0): self.high = high
        def fit(self, X, y=None): return self
        def transform(self, X): return np.clip(X, 0, self.high)
    def f(high=1.0, c=1.0, weights=(1.0, 2.0)):
        return make_pipeline(Clip(high), StandardScaler(), FunctionTransformer(shift), LogisticRegression(C=c))
    def bare(**parameters): return HistGradientBoostingClassifier(**parameters)
"""


def test_an_estimator_is_its_class_parameters_and_versions(load: Load) -> None:
    import sklearn

    bare = load(ESTIMATORS, "bare")
    assert estimator_fingerprint(bare()) == estimator_fingerprint(bare(max_iter=100))
    assert estimator_fingerprint(bare()) != estimator_fingerprint(bare(max_iter=200))
    described = describe_code(bare(max_iter=200))
    assert described["value"]["parameters"]["max_iter"] == 200
    assert described["versions"] == {"scikit-learn": sklearn.__version__}
    import numpy as np

    fitted = bare(max_iter=2).fit(np.arange(40.0).reshape(-1, 1), np.arange(40) % 2)
    assert estimator_fingerprint(fitted) == estimator_fingerprint(bare(max_iter=2))


def test_nested_estimators_callables_and_own_classes_count(load: Load) -> None:
    before = estimator_fingerprint(load(ESTIMATORS)())
    assert estimator_fingerprint(load(ESTIMATORS)()) == before
    assert estimator_fingerprint(load(ESTIMATORS)(c=2.0)) != before
    assert estimator_fingerprint(load(ESTIMATORS)(high=2.0)) != before
    assert estimator_fingerprint(load(ESTIMATORS.replace("OFFSET = 1", "OFFSET = 2"))()) != before
    assert estimator_fingerprint(load(ESTIMATORS.replace("np.clip(X, 0,", "np.clip(X, 1,"))()) != before


def test_an_estimators_parameter_is_named_when_refused(load: Load) -> None:
    import numpy as np

    with pytest.raises(FingerprintError, match="random_state"):
        estimator_fingerprint(load(ESTIMATORS, "bare")(random_state=np.random.RandomState(0)))
