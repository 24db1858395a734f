# SPDX-License-Identifier: Apache-2.0
"""The extension and its switches; everything else stands in pyproject.toml.

Environment:
    VMM_IOVA_NO_EXT=1       build no extension: a wheel of the pure engine only.
    VMM_IOVA_BASELINE=1     no code for vector units that not every CPU of the architecture has.
    VMM_IOVA_SANITIZE=1     address and undefined-behaviour sanitizers.
    VMM_IOVA_REQUIRE_EXT=1  fail when the extension cannot be built; without it a machine that has
                            no compiler gets the pure engine, and the package says so once.
"""

from __future__ import annotations

import os
from glob import glob

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

REQUIRED = os.environ.get("VMM_IOVA_REQUIRE_EXT") == "1"


class BuildIfPossible(build_ext):
    """Go on without the extension where there is no compiler, or no Python headers.

    `optional=True` alone does not see a compiler that is missing: that surfaces as an OSError.
    """

    def finalize_options(self) -> None:
        super().finalize_options()
        if self.parallel is None:
            self.parallel = True  # both modules at once: the compiler is most of an installation

    def build_extensions(self) -> None:
        super().build_extensions()
        # What was not built must not be looked for, when it is copied into a checkout.
        self.extensions = [
            ext for ext in self.extensions if os.path.exists(self.get_ext_fullpath(ext.name))
        ]

    def build_extension(self, ext: Extension) -> None:
        try:
            super().build_extension(ext)
        except Exception as error:
            if REQUIRED:
                raise
            self.warn(f"{ext.name} was not built, the pure engine serves instead: {error}")


def _extensions() -> list[Extension]:
    if os.environ.get("VMM_IOVA_NO_EXT") == "1":
        return []
    try:
        from Cython.Build import cythonize
    except ImportError:
        if REQUIRED:
            raise
        return []
    # Python was most often built with -g, and hands it on: debug records are a third of the
    # compiler's time and three quarters of the wheel.
    flags = ["-g0", "-fno-strict-aliasing"]
    flags.append("-Wno-psabi")  # vectors never cross a call that is not inlined
    links = ["-s"]
    hot = cold = ["-O2"]
    macros = []
    if os.environ.get("VMM_IOVA_BASELINE") == "1":
        macros.append(("VMM_IOVA_BASELINE", "1"))
    if os.environ.get("VMM_IOVA_SANITIZE") == "1":
        checks = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
        flags = ["-g", "-fno-omit-frame-pointer", *checks]
        links = checks
        hot = cold = ["-O1"]
    fast = Extension(
        "vmm_iova._fast",
        [
            "vmm_iova/_fast.pyx",
            *(f"vmm_iova/allocator/tree/{name}.c" for name in ("plain", "wide")),
        ],
        depends=[*glob("vmm_iova/allocator/tree/*.h"), "vmm_iova/_fast.pxd"],
        define_macros=macros,
        extra_compile_args=[*flags, *hot],
        extra_link_args=links,
        optional=not REQUIRED,
    )
    ioctls = Extension(
        "vmm_iova.kernel._ioctl",
        ["vmm_iova/kernel/_ioctl.pyx"],
        extra_compile_args=[*flags, *cold],  # the kernel's part of a call is the long one
        extra_link_args=links,
        optional=True,  # its Python twin does the same, one call at a time
    )
    return list(
        cythonize(
            [fast, ioctls],
            build_dir="build/cython",
            compiler_directives={"language_level": 3, "embedsignature": True},
        )
    )


setup(ext_modules=_extensions(), cmdclass={"build_ext": BuildIfPossible})
