"""The container engine: reached, asked for an image, and its complaints in words."""

from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus

from docker.client import DockerClient
from docker.errors import APIError, DockerException, ImageNotFound
from docker.models.containers import Container
from docker.models.images import Image
from urllib3.exceptions import HTTPError

from worker.launch.protocol import LaunchError

# Cancel waits for no longer than this on an engine that does not answer, a pull for as long as something comes.
ANSWER_SECONDS, PULL_SECONDS = 10, 120

# When the engine could not be asked, in distinction to what it answers. The client's own errors are OSErrors too.
UNREACHABLE = (OSError, HTTPError)


def connect(url: str = "") -> DockerClient:
    """A client of the engine at `url`, or where DOCKER_HOST says.

    Raises:
        LaunchError: it does not answer.
    """
    return _client(url, ANSWER_SECONDS)


def find_image(url: str, name: str) -> Image:
    """The image that the engine has under this name, pulled if it has none.

    Raises:
        LaunchError: it is not there and cannot be pulled.
    """
    client = _client(url, PULL_SECONDS)
    try:
        return client.images.get(name)
    except ImageNotFound:
        pass
    try:
        # Without a tag or digest the engine would send all tags.
        return client.images.pull(name) if "@" in name else client.images.pull(*_named(name))
    except (APIError, *UNREACHABLE) as error:
        raise LaunchError(
            f"the image {name} is not on this host and cannot be pulled ({reason(error)}): build it, or set "
            "container_image (CLIPWATCH_CONTAINER_IMAGE)"
        ) from error
    finally:
        client.close()


def remove(container: Container) -> None:
    """Kills what runs in a container and removes it; harmless when it has gone, or somebody else is removing it."""
    try:
        container.remove(force=True)
    except APIError as error:
        if error.status_code not in (HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT):
            raise


@contextmanager
def in_words(what: str) -> Iterator[None]:
    """Makes a `LaunchError` that begins with `what` of whatever the engine says no to."""
    try:
        yield
    except (DockerException, *UNREACHABLE) as error:
        raise LaunchError(f"{what}: {reason(error)}") from error


def reason(error: Exception) -> str:
    """One line of what an engine, a registry or a socket complains of, with what to do where that is known."""
    said = error.explanation if isinstance(error, APIError) and error.explanation else error
    text = " ".join(str(said).split())
    if "could not select device driver" in text:
        return f"{text}; install NVIDIA's container toolkit on this host"
    return text


def _client(url: str, seconds: int) -> DockerClient:
    try:
        if url:
            return DockerClient(base_url=url, version="auto", timeout=seconds)
        return DockerClient.from_env(version="auto", timeout=seconds)
    except (DockerException, *UNREACHABLE) as error:
        where = url or "of this host"
        raise LaunchError(
            f"the container engine {where} does not answer ({reason(error)}): start it, let this user use it, or set "
            "container_engine (CLIPWATCH_CONTAINER_ENGINE)"
        ) from error


def _named(name: str) -> tuple[str, str]:
    """Repository and tag; a colon before a slash belongs to a registry's port."""
    repository, colon, tag = name.rpartition(":")
    return (repository, tag) if colon and "/" not in tag else (name, "latest")
