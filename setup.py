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

from setuptools import Extension, setup


def _extensions() -> list[Extension]:
    if os.environ.get("VMM_IOVA_NO_EXT") == "1":
        return []
    try:
        from Cython.Build import cythonize
    except ImportError:
        if os.environ.get("VMM_IOVA_REQUIRE_EXT") == "1":
            raise
        return []
    flags = ["-O3", "-fno-strict-aliasing"]
    links: list[str] = []
    macros = []
    if os.environ.get("VMM_IOVA_BASELINE") == "1":
        macros.append(("VMM_IOVA_BASELINE", "1"))
    if os.environ.get("VMM_IOVA_SANITIZE") == "1":
        checks = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
        flags = ["-O1", "-g", "-fno-omit-frame-pointer", *checks]
        links = checks
    fast = Extension(
        "vmm_iova._fast",
        ["vmm_iova/_fast.pyx"],
        depends=["vmm_iova/_tree.h", "vmm_iova/_fast.pxd"],
        define_macros=macros,
        extra_compile_args=flags,
        extra_link_args=links,
        optional=os.environ.get("VMM_IOVA_REQUIRE_EXT") != "1",
    )
    return list(
        cythonize(
            [fast],
            build_dir="build/cython",
            compiler_directives={"language_level": 3, "embedsignature": True},
        )
    )


setup(ext_modules=_extensions())
