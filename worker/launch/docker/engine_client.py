"""Connects to the container engine, finds images, and makes one-line messages of its errors."""

from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus

from docker.client import DockerClient
from docker.errors import APIError, DockerException, ImageNotFound
from docker.models.containers import Container
from docker.models.images import Image
from urllib3.exceptions import HTTPError

from worker.launch.protocol import LaunchError

# Timeouts of one request. A cancel waits no longer than the first; a pull waits the second for each next part.
ANSWER_SECONDS, PULL_SECONDS = 10, 120

# Raised when the engine does not answer. An APIError is an answer, although it is an OSError too.
UNREACHABLE = (OSError, HTTPError)


def connect(url: str = "") -> DockerClient:
    """A client of the engine at `url`, by default at DOCKER_HOST or the usual socket.

    Raises:
        LaunchError: the engine does not answer.
    """
    return _client(url, ANSWER_SECONDS)


def find_image(url: str, name: str) -> Image:
    """The image of that name. It is pulled if the engine does not have it.

    Raises:
        LaunchError: the engine does not have the image and cannot pull it.
    """
    client = _client(url, PULL_SECONDS)
    try:
        return client.images.get(name)
    except ImageNotFound:
        pass
    try:
        # Without a tag or digest the engine would pull all tags.
        return client.images.pull(name) if "@" in name else client.images.pull(*_repository_and_tag(name))
    except (APIError, *UNREACHABLE) as error:
        raise LaunchError(
            f"the image {name} is not on this host and cannot be pulled ({describe_error(error)}): build it, or set "
            "container_image (CLIPWATCH_CONTAINER_IMAGE)"
        ) from error
    finally:
        client.close()


def describe_engine(url: str, image: str) -> str:
    """The version of the engine and the id of the image, in one line.

    Raises:
        LaunchError: the engine does not answer, or does not have the image and cannot pull it.
    """
    client = connect(url)
    try:
        found = find_image(url, image)
        return f"engine {client.version()['Version']}, image {image} ({found.short_id})"
    finally:
        client.close()


def remove(container: Container) -> None:
    """Kill what runs in a container and remove it. Harmless if it has been removed or is being removed."""
    try:
        container.remove(force=True)
    except APIError as error:
        if error.status_code not in (HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT):
            raise


@contextmanager
def explained(problem: str) -> Iterator[None]:
    """Turns an error of the engine into a `LaunchError` whose message begins with `problem`."""
    try:
        yield
    except (DockerException, *UNREACHABLE) as error:
        raise LaunchError(f"{problem}: {describe_error(error)}") from error


def describe_error(error: Exception) -> str:
    """The message of an error in one line, with advice where the remedy is known."""
    message = error.explanation if isinstance(error, APIError) and error.explanation else error
    text = " ".join(str(message).split())
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
            f"the container engine {where} does not answer ({describe_error(error)}): start it, let this user use "
            "it, or set container_engine (CLIPWATCH_CONTAINER_ENGINE)"
        ) from error


def _repository_and_tag(name: str) -> tuple[str, str]:
    """The repository and the tag of an image. A colon before a slash is that of a registry's port, not of a tag."""
    repository, colon, tag = name.rpartition(":")
    return (repository, tag) if colon and "/" not in tag else (name, "latest")
