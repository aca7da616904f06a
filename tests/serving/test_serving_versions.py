"""Folders with a SavedModel: which version is served, and what is said of a damaged one."""

import errno

import exported
import pytest

from app.errors import DataError, UsageError
from app.serving import model, versions

pytestmark = pytest.mark.fast


def test_the_newest_version_is_served(tmp_path):
    for version in (2, 10):
        (tmp_path / "shop" / str(version)).mkdir(parents=True)
        (tmp_path / "shop" / str(version) / "saved_model.pb").write_bytes(b"x")
    found = versions.find(tmp_path / "shop")
    assert (found.number, found.name, found.about.kind) == (10, "shop", None)
    assert versions.find(tmp_path / "shop" / "2").number == 2
    assert versions.find(tmp_path / "shop" / "2").name == "shop"
    extra = tmp_path / "shop" / "10" / versions.EXTRA
    extra.parent.mkdir()
    extra.write_text('{"format": 1, "name": "reviews", "kind": "text", "classes": ["a", "b"]}')
    found = versions.find(tmp_path / "shop")
    assert (found.name, found.about.kind, found.about.classes) == ("reviews", "text", ("a", "b"))
    assert versions.find(tmp_path / "shop", "mine").name == "mine"


def forbidden(folder):
    raise PermissionError(errno.EACCES, "Permission denied", "saved_model.pb")


def test_a_folder_that_cannot_be_served_is_named(tmp_path, tmp_path_factory, monkeypatch):
    with pytest.raises(UsageError, match="does not exist"):
        versions.find(tmp_path / "nothing")
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="is a file"):
        versions.find(tmp_path / "file")
    with pytest.raises(UsageError, match="no folder with a version number"):
        versions.find(tmp_path)
    (tmp_path / "1").mkdir()
    with pytest.raises(UsageError, match=r"holds no saved_model\.pb: give"):
        versions.find(tmp_path)
    graph = tmp_path / "1" / "saved_model.pb"
    graph.write_bytes(b"")
    with pytest.raises(DataError, match="is empty"):
        versions.find(tmp_path)
    other = exported.half_plus_two(tmp_path_factory.mktemp("whole"))
    whole = (other / "123" / "saved_model.pb").read_bytes()
    for damaged in (b"no protocol buffer", whole[: len(whole) // 2], whole):  # no variables
        graph.write_bytes(damaged)
        with pytest.raises(DataError, match="cannot be loaded"):
            model.load(versions.find(tmp_path))
    with monkeypatch.context() as patch:
        patch.setattr(model, "read_definitions", forbidden)
        with pytest.raises(DataError, match=r"\(Permission denied\): let it be read, or") as caught:
            model.load(versions.find(other))
        assert "export" not in str(caught.value)
    with pytest.raises(UsageError, match="give another --name"):
        versions.find(tmp_path, "a/b")
    (tmp_path / "1" / "assets.extra").mkdir()
    for text in ("{", "[]", '{"format": 2}', '{"name": "x"}'):
        (tmp_path / "1" / versions.EXTRA).write_text(text)
        with pytest.raises(DataError, match="cannot be used"):
            versions.find(tmp_path)
