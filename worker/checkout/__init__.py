"""Where the Opacus under test comes from. For now it is the one installed beside the worker."""

from importlib.metadata import version


def opacus_version() -> str:
    """Version of the installed Opacus."""
    return version("opacus")


__all__ = ["opacus_version"]
