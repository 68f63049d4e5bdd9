"""A real git repository with a package `opacus` in it, made by a test."""

import subprocess
from pathlib import Path

WHO = ("-c", "user.name=Test", "-c", "user.email=test@example.org", "-c", "commit.gpgsign=false")


class Repository:
    """One working repository; its path is a remote."""

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir()
        self.git("init", "--quiet", "--initial-branch=main")

    def git(self, *arguments: str) -> str:
        command = ("git", *WHO, *arguments)
        return subprocess.run(command, cwd=self.folder, check=True, capture_output=True, text=True).stdout.strip()

    def commit(self, files: dict[str, str]) -> str:
        """Writes the files, commits them, and returns the sha."""
        for name, text in files.items():
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        self.git("add", "--all")
        self.git("commit", "--quiet", "--allow-empty", "--message", "a commit")
        return self.git("rev-parse", "HEAD")

    def commit_opacus(self, version: str) -> str:
        package = {"opacus/__init__.py": f'__version__ = "{version}"\n', "opacus/deep/er.py": "", "setup.py": ""}
        return self.commit(package)
