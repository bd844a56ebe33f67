"""Where fitted estimators are kept, and what turns them into a form that is served without their libraries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol


class Models(Protocol):
    """Saves fitted estimators and gives them back safely."""

    def save(self, estimator: Any) -> str:
        """Store a fitted estimator durably and return a reference to it."""
        ...

    def load(self, reference: str) -> Any:
        """Return the estimator. Raises ArtefactError when it is missing, damaged, unsigned or of other libraries."""
        ...

    def save_form(self, content: bytes) -> str:
        """Store a compiled or converted form of an estimator durably and return a reference to it."""
        ...

    def load_form(self, reference: str) -> bytes:
        """Return what ``save_form`` stored. Raises ArtefactError when it is missing or damaged."""
        ...


class Compiler(Protocol):
    """Turns fitted estimators into compiled predictors (see ``kernels.program``)."""

    def compile(self, estimator: Any, columns: Sequence[tuple[str, tuple[str, ...] | None]], classes: int) -> bytes:
        """Return the compiled form of a fitted ``estimator``.

        ``columns``: of its input, in order, each with its categories, or None for a number. ``classes``: how many it
        tells apart; 0 for a regression. Two classes are predicted by the probability of the second. Raises
        NotCompiledError saying what stands in the way.
        """
        ...


class Converter(Protocol):
    """Turns fitted estimators into ONNX, and runs them."""

    def convert(self, estimator: Any, columns: Sequence[tuple[str, tuple[str, ...] | None]]) -> Sequence[bytes]:
        """Return the forms that the estimator can be converted to, best first.

        Raises NotCompiledError saying what stands in the way.
        """
        ...

    def open(self, content: bytes, classes: int) -> Session:
        """Return a running session of a form. Raises ArtefactError when it cannot be run."""
        ...


class Session(Protocol):
    """A converted estimator that runs in this process."""

    def run(self, columns: Sequence[Any]) -> Any:
        """Return predictions, float64 (rows, outputs), of the input's columns in order.

        A column is a float64 array with null as NaN, or an object array of texts and None.
        """
        ...
