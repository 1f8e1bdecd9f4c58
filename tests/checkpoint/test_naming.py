"""Names: from any file of a checkpoint to all of them, and no two checkpoints with a file in common."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuromanifold_gpt.checkpoint.naming import (
    paths_of_any_file,
    paths_of_model_file,
    paths_of_name,
    previous,
    step_name,
    temporary,
)

HERE = Path("runs/a")
stems = st.text("abc019.-_= \xe9", min_size=1, max_size=12).filter(lambda name: name not in (".", ".."))
extensions = st.sampled_from(["", ".ckpt", ".pt", ".pth", ".bin", ".v1", "-x"])


@given(step=st.integers(0, 10**9))
def test_a_step_names_its_files_so_that_they_sort_by_it(step):
    paths = paths_of_name(HERE, step_name(step))
    assert paths.model == HERE / f"checkpoint-step{step:06d}-model.pt"
    assert paths.optimizer == HERE / f"checkpoint-step{step:06d}-optimizer.pt"
    assert paths.manifest == HERE / f"checkpoint-step{step:06d}.json"
    assert step >= 999_999 or step_name(step) < step_name(step + 1)


@given(stem=stems, extension=extensions)
def test_each_file_leads_to_all_three(stem, extension):
    paths = paths_of_name(HERE, stem + extension)
    assert paths.name == stem + extension
    assert paths.directory == HERE
    assert paths_of_any_file(paths.manifest) == paths
    assert paths_of_any_file(paths.optimizer) == paths
    assert paths_of_any_file(paths.model) == paths_of_model_file(paths.model) == paths


@pytest.mark.parametrize("extension", [".ckpt", ".pt", ".pth"])
def test_a_path_that_somebody_else_chose_stays_the_model_file(extension):
    """And ``a.ckpt`` and ``a.pt``, in one directory, have no file in common."""
    path = HERE / f"epoch=0-step=50{extension}"
    paths = paths_of_model_file(path)
    assert paths.model == path
    assert (paths.optimizer.name, paths.manifest.name) == (path.name + "-optimizer.pt", path.name + ".json")
    assert paths == paths_of_name(HERE, path.name) == paths_of_any_file(path)


@given(one=stems, other=stems, extensions=st.tuples(extensions, extensions))
def test_two_names_have_no_file_in_common(one, other, extensions):
    """Final, temporary or set aside."""
    names = {one + extensions[0], other + extensions[1]}
    groups = []
    for name in names:
        paths = paths_of_name(HERE, name)
        finals = {paths.model, paths.optimizer, paths.manifest}
        groups.append(finals | set(map(temporary, finals)) | set(map(previous, finals)))
        assert len(groups[-1]) == 9
    assert len(set().union(*groups)) == 9 * len(names)


@pytest.mark.parametrize("name", ["../x", "a/b", "/etc/x", ".", "x/"])
def test_a_path_is_no_name(name):
    """A name that would lead out of its directory could not be found in it either."""
    with pytest.raises(ValueError, match="cannot name a checkpoint"):
        paths_of_name(HERE, name)
