"""Builds the compiled kernels. They are optional: where no C compiler is found, the plain-Python kernels serve."""

from pathlib import Path

from setuptools import Extension, setup

NATIVE = Path("src/tidemill/kernels/native")

# One file a kernel, self-contained but for the headers beside it. Contracted multiply-adds would change bits.
setup(
    ext_modules=[
        Extension(
            f"tidemill.kernels._{source.stem}",
            [str(source)],
            include_dirs=[str(NATIVE)],
            depends=sorted(str(header) for header in NATIVE.glob("*.h")),
            extra_compile_args=["-std=c11", "-O3", "-ffp-contract=off", "-fno-math-errno", "-Wall", "-Wextra"],
            libraries=["m"],
            optional=True,
        )
        for source in sorted(NATIVE.glob("*.c"))
    ]
)
