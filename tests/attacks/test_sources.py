"""Commits and wheels that are made to write outside of their folder, or to run as other code than what was read."""

import subprocess
import threading
import zipfile
from pathlib import Path

import pytest

from tests.worker.checkout.repository import WHO, Repository
from worker.checkout import Checkout, CheckoutError
from worker.checkout.tree import unpack_package

NEVER = threading.Event()
FILE, LINK, FOLDER, SUBMODULE = "100644", "120000", "40000", "160000"
FORMAT = "version = '$Format:%H$'\nident = '$Id$'\n"


class Crafted(Repository):
    """Trees as no `git add` makes them."""

    def blob(self, content: bytes) -> str:
        return self._hashed("blob", content)

    def tree(self, *entries: tuple[str, str, str]) -> str:
        """The id of a tree with these modes, names and ids, in this order, whatever they are."""
        lines = [f"{mode} {name}".encode() + b"\0" + bytes.fromhex(object_id) for mode, name, object_id in entries]
        return self._hashed("tree", b"".join(lines))

    def package(self, *entries: tuple[str, str, str]) -> str:
        """A commit on main whose folder opacus/ has these entries and an `__init__.py`."""
        package = self.tree((FILE, "__init__.py", self.blob(b"")), *entries)
        sha = self.git("commit-tree", "-m", "crafted", self.tree((FOLDER, "opacus", package)))
        self.git("update-ref", "refs/heads/main", sha)
        return sha

    def _hashed(self, kind: str, content: bytes) -> str:
        command = ("git", *WHO, "hash-object", "-t", kind, "-w", "--literally", "--stdin")
        return (
            subprocess.run(command, cwd=self.folder, input=content, check=True, capture_output=True)
            .stdout.decode()
            .strip()
        )


@pytest.fixture
def crafted(tmp_path):
    return Crafted(tmp_path / "remote")


@pytest.fixture
def outside(tmp_path):
    folder = tmp_path / "outside"
    folder.mkdir()
    return folder


def from_remote(crafted: Crafted, tmp_path: Path) -> str:
    """The way of a worker. What it says in the end, which is one line."""
    with pytest.raises(CheckoutError) as caught:
        Checkout(str(crafted.folder), tmp_path / "cache").get("commit:main", NEVER)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def from_mirror(crafted: Crafted, sha: str, tmp_path: Path) -> str:
    """The objects are there, as in a mirror of before, into which git fetched without a look at them."""
    (tmp_path / "unpacked").mkdir()
    try:
        unpack_package(crafted.folder / ".git", sha, tmp_path / "unpacked", NEVER)
    except CheckoutError as error:
        return str(error)
    return "it was unpacked"


def duplicate(crafted: Crafted, outside: Path) -> str:
    """`x` is a link that leads outside, and also a folder with a file in it."""
    return crafted.package(
        (LINK, "x", crafted.blob(str(outside).encode())),
        (FOLDER, "x", crafted.tree((FILE, "pwned", crafted.blob(b"pwned")))),
    )


def chain(crafted: Crafted, outside: Path) -> str:
    """Links whose real path is longer than `realpath` follows, then a file behind them (CVE-2025-4517).

    The filter of `tarfile` takes the part of the path that it cannot follow for one that leads inside.
    """
    steps, up = "abcdefghijklmnop", "l" * 254
    room = 4_096 - len(str(outside.with_name("unpacked") / "opacus")) - 40
    long = "d" * min(247, room // len(steps) - 1)
    to_long = crafted.blob(long.encode())
    folders = crafted.tree((FILE, "x", crafted.blob(b"")))
    again = crafted.tree((LINK, up, crafted.blob(b"../" * len(steps))))
    for step in reversed(steps[1:]):
        folders = crafted.tree((LINK, step, to_long), (FOLDER, long, folders))
        again = crafted.tree((FOLDER, step, again))
    target = "/".join((*steps, up, "..", "..", outside.name))
    return crafted.package(
        (LINK, steps[0], to_long),
        (FOLDER, long, folders),
        (FOLDER, steps[0], again),
        (LINK, "escape", crafted.blob(target.encode())),
        (FOLDER, "escape", crafted.tree((FILE, "pwned", crafted.blob(b"pwned")))),
    )


@pytest.mark.parametrize("craft", [duplicate, chain])
def test_a_crafted_tree_writes_nothing_outside(crafted, outside, tmp_path, craft):
    sha = craft(crafted, outside)
    said = from_mirror(crafted, sha, tmp_path)
    assert not list(outside.iterdir())
    assert "cannot be unpacked" in said
    assert "cannot fetch" in from_remote(crafted, tmp_path)


@pytest.mark.parametrize(
    ("mode", "name"),
    [
        (FILE, "../pwned"),
        (FILE, "deep/pwned"),
        (FOLDER, ".."),
        (FOLDER, "."),
        (FOLDER, ".git"),
        (FOLDER, ".GIT"),
        (FILE, "a\nb"),
        (FILE, "n" * 256),
        (SUBMODULE, "sub"),
        ("100664", "group"),
        ("60000", "device"),
    ],
)
def test_a_name_or_a_kind_that_is_none_of_a_file(crafted, tmp_path, mode, name):
    content = crafted.tree() if mode == FOLDER else crafted.blob(b"x")
    assert "cannot be unpacked" in from_mirror(crafted, crafted.package((mode, name, content)), tmp_path)


def test_names_that_differ_by_case_alone(crafted, tmp_path):
    sha = crafted.package((FILE, "A.py", crafted.blob(b"1")), (FILE, "a.py", crafted.blob(b"2")))
    assert "'a.py' is there twice, or differs from another name by case alone" in from_mirror(crafted, sha, tmp_path)


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("/etc/passwd", "leads outside"),
        ("../../../../../../../../etc/passwd", "leads outside"),
        ("../remote", "leads nowhere"),
        ("link", "leads nowhere"),
        ("inner", "is a link to a folder"),
        ("inner/up/../..", "is a link to a folder"),
    ],
)
def test_a_link_leads_to_a_file_of_the_package_or_is_refused(crafted, tmp_path, target, words):
    inner = crafted.tree((FILE, "file.py", crafted.blob(b"")), (LINK, "up", crafted.blob(b"file.py")))
    sha = crafted.package((FOLDER, "inner", inner), (LINK, "link", crafted.blob(target.encode())))
    assert words in from_mirror(crafted, sha, tmp_path)
    good = crafted.package((FOLDER, "inner", inner), (LINK, "link", crafted.blob(b"inner/up")))
    source = Checkout(str(crafted.folder), tmp_path / "cache").get(f"commit:{good}", NEVER)
    assert (source.folder / "opacus" / "link").resolve() == source.folder / "opacus" / "inner" / "file.py"


def test_folders_that_nest_deep_and_trees_that_unfold_without_end(crafted, tmp_path):
    tree = crafted.tree()
    for _ in range(1_500):
        tree = crafted.tree((FOLDER, "d", tree))
    assert "nested more than 32 deep" in from_mirror(crafted, crafted.package((FOLDER, "d", tree)), tmp_path)


def test_a_tree_that_unfolds_without_end(crafted, tmp_path):
    """Twelve trees, 10¹² folders."""
    tree = crafted.tree()
    for _ in range(12):
        tree = crafted.tree(*((FOLDER, f"d{number}", tree) for number in range(10)))
    assert "more than 20000 files" in from_mirror(crafted, crafted.package((FOLDER, "d", tree)), tmp_path)


def test_compiled_code_that_would_run_in_place_of_the_source(crafted, tmp_path):
    """Its hash would be that of a commit without it, whose finished arms are reused."""
    cache = crafted.tree((FILE, "optimizer.cpython-311.pyc", crafted.blob(b"")))
    sha = crafted.package((FOLDER, "__pycache__", cache))
    assert "is compiled code" in from_mirror(crafted, sha, tmp_path)


def test_an_object_that_is_not_what_its_id_says(crafted, tmp_path):
    """A mirror that another program could write to, or a disk that lost bits."""
    import zlib

    wanted = crafted.blob(b"good = True")
    sha = crafted.package((FILE, "code.py", wanted))
    path = crafted.folder / ".git" / "objects" / wanted[:2] / wanted[2:]
    path.chmod(0o644)
    path.write_bytes(zlib.compress(b"blob 11\0good = Fake"))
    assert f"object {wanted} is" in from_mirror(crafted, sha, tmp_path)


@pytest.mark.parametrize("place", ["opacus/.gitattributes", ".gitattributes"])
def test_no_attribute_changes_what_is_tested(crafted, tmp_path, place):
    """`git archive` leaves out, expands and converts what the commit itself asks for."""
    attributes = "hidden.py export-ignore\n*.py export-subst ident text eol=crlf\n"
    crafted.commit({"opacus/__init__.py": FORMAT, "opacus/hidden.py": FORMAT, place: attributes})
    source = Checkout(str(crafted.folder), tmp_path / "cache").get("commit:main", NEVER)
    for name in ("__init__.py", "hidden.py"):
        assert (source.folder / "opacus" / name).read_bytes() == FORMAT.encode()


def test_no_setting_of_another_repository_changes_what_is_tested(crafted, tmp_path, monkeypatch):
    """As when a worker is started by a hook of git."""
    other = Crafted(tmp_path / "other")
    other.commit({"opacus/__init__.py": "other = True"})
    crafted.commit({"opacus/__init__.py": "wanted = True"})
    monkeypatch.setenv("GIT_DIR", str(other.folder / ".git"))
    monkeypatch.setenv("GIT_OBJECT_DIRECTORY", str(other.folder / ".git" / "objects"))
    source = Checkout(str(crafted.folder), tmp_path / "cache").get("commit:main", NEVER)
    assert (source.folder / "opacus" / "__init__.py").read_text() == "wanted = True"


def wheel_with(folder: Path, files: dict[str, bytes], mode: int = 0o100644) -> None:
    folder.mkdir()
    with zipfile.ZipFile(folder / "opacus-7.7.7-py3-none-any.whl", "w", zipfile.ZIP_DEFLATED) as archive:
        metadata = "opacus-7.7.7.dist-info/"
        archive.writestr(metadata + "METADATA", "Metadata-Version: 2.1\nName: opacus\nVersion: 7.7.7\n")
        archive.writestr(metadata + "WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(metadata + "RECORD", "")
        archive.writestr("opacus/__init__.py", "")
        for name, content in files.items():
            entry = zipfile.ZipInfo(name)
            entry.external_attr = mode << 16
            archive.writestr(entry, content, zipfile.ZIP_DEFLATED)


@pytest.mark.parametrize(
    ("files", "mode", "words"),
    [
        ({"opacus/../../pwned": b""}, 0o100644, "is no name of a file"),
        ({"opacus/a/../../../pwned": b""}, 0o100644, "is no name of a file"),
        ({"opacus/link": b"/etc/passwd"}, 0o120777, "is no ordinary file"),
        ({"opacus/A.py": b"", "opacus/a.py": b""}, 0o100644, "there twice"),
        ({"opacus/x.so": b""}, 0o100644, "is compiled code"),
        ({f"opacus/{number}": bytes(30 * 2**20) for number in range(17)}, 0o100644, "larger than 500 MiB"),
    ],
    ids=["up", "up from below", "link", "case", "compiled", "bomb"],
)
def test_a_wheel_that_is_hostile(tmp_path, monkeypatch, files, mode, words):
    wheel_with(tmp_path / "wheels", files, mode)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    with pytest.raises(CheckoutError, match=words):
        Checkout(str(tmp_path / "none"), tmp_path / "cache").get("version:7.7.7", NEVER)
    assert not list(tmp_path.rglob("pwned"))
