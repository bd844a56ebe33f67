"""Compiles fitted estimators: follows a pipeline's steps, then hands its last one to the compiler of its library.

A library has one file with a function ``compile_model`` and one row in the table of adapters, under the name of its
package; ``testing/predictor_suite.py`` is what it must pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tidemill.adapters import TABLE, adapter
from tidemill.adapters.compile_steps import follow
from tidemill.adapters.compiling import Builder
from tidemill.base.errors import NotCompiledError
from tidemill.kernels.program import MalformedError


class Compilers:
    """Implements ports.models.Compiler for every library that has a row in the table."""

    def compile(self, estimator: Any, columns: Sequence[tuple[str, tuple[str, ...] | None]], classes: int) -> bytes:
        """Return the compiled form of a fitted ``estimator``; see the port. Raises NotCompiledError."""
        builder = Builder(columns)
        last, frame = follow(estimator, builder.frame(), builder)
        library = type(last).__module__.partition(".")[0]
        if ("compiler", library) not in TABLE:
            raise NotCompiledError(f"there is no compiler for {type(last).__name__} of {library}")
        try:
            return bytes(adapter("compiler", library)(last, frame, builder, classes).encode())
        except (MalformedError, AttributeError, TypeError, KeyError, IndexError) as error:
            # Another version of the library, or a use of it that its compiler does not know.
            raise NotCompiledError(
                f"{type(last).__name__} is not as its compiler knows it: {type(error).__name__}: {error}"
            ) from error
