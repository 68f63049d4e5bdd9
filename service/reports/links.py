"""Addresses of this service in reports. Without a public URL there are none."""


def check_url(public_url: str, public_id: str) -> str | None:
    """The page of a check."""
    return _url(public_url, f"/checks/{public_id}")


def comparison_url(public_url: str, public_id: str) -> str | None:
    """The page of a comparison."""
    return _url(public_url, f"/comparisons/{public_id}")


def plot_url(public_url: str, public_id: str, name: str) -> str | None:
    """One plot of a comparison."""
    return _url(public_url, f"/api/v1/comparisons/{public_id}/plots/{name}")


def _url(public_url: str, path: str) -> str | None:
    return public_url.rstrip("/") + path if public_url else None
