"""Objects of one environment by name: files below a folder, or objects of an S3, GCS or Azure store.

The raw archive, reports, run records and purchased history are objects. `LocalObjects` keeps them as files
with the durability of `files.write_atomically`; `RemoteObjects` keeps them in an object store, whose writes
are atomic, and durable once acknowledged. `NQ_LAKE_URL` decides which (`Workspace.objects`).

A name is relative and its parts are separated by `/`; no part is empty or begins with a dot. No secret of
the store appears in an error, a log, a `repr` or a URI.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar
from urllib.parse import urlsplit

from nq_pipeline import files
from nq_pipeline.clock import to_ns
from nq_pipeline.errors import StoreError

if TYPE_CHECKING:
    from obstore.store import ObjectStore

    from nq_pipeline.settings.groups import StoreSettings

CHUNK_BYTES = 16 << 20
"""Bytes that one request of a large object reads; each request has its own retries."""
PARTS = 4
"""Parts of 5 MiB that are uploaded at a time: few, so that a slow line sends each within its time limit."""
Value = TypeVar("Value")
Operation = Callable[[Any, "ObjectStore", str], Value]
"""What to do with the obstore module, a store and a path in it."""


class StoredObject(NamedTuple):
    """An object in a listing; `modified` in nanoseconds UTC, by the store's clock."""

    name: str
    size: int
    modified: int


class Objects(ABC):
    """Objects by name. Safe for any number of threads and processes.

    A remote store's methods raise `StoreError` when it does not answer or refuses, after retries; a local
    folder's raise `OSError`. A bad name is a `ValueError`.
    """

    @abstractmethod
    def get(self, name: str) -> bytes:
        """The content; `FileNotFoundError` if there is no such object."""

    @abstractmethod
    def put(self, name: str, body: bytes) -> None:
        """Store durably and atomically; readers see all of the new content or all of the old."""

    @abstractmethod
    def put_if_absent(self, name: str, body: bytes) -> bool:
        """Store unless the object exists. True if the object has this content, from this call or another.

        Give each caller a content of its own, and True means that this call stored it.
        """

    @abstractmethod
    def put_file(self, name: str, path: Path) -> None:
        """Store the content of a local file, of any size."""

    @abstractmethod
    def local_copy(self, name: str) -> AbstractContextManager[Path]:
        """A file with the content, for libraries that need a path. Do not change it.

        It is the object itself if that is local, or else a temporary file that is removed with the context.
        Raises `FileNotFoundError` if there is no such object.
        """

    @abstractmethod
    def fetch_file(self, name: str, path: Path) -> None:
        """Write the content, of any size, to a local file, durably and atomically.

        Raises `FileNotFoundError` if there is no such object.
        """

    @abstractmethod
    def list(self, folder: str = "") -> Iterator[StoredObject]:
        """All objects below a folder, at any depth, ordered by name."""

    @abstractmethod
    def folders(self, folder: str = "") -> tuple[str, ...]:
        """The names of the folders directly below a folder, ordered."""

    @abstractmethod
    def exists(self, name: str) -> bool:
        """Whether there is such an object."""

    @abstractmethod
    def delete(self, names: Iterable[str]) -> None:
        """Remove objects; those that do not exist are skipped."""

    @abstractmethod
    def uri(self, name: str = "") -> str:
        """Where an object is, for people and other programs: a path, or an address like `s3://bucket/name`."""

    @abstractmethod
    def within(self, folder: str) -> Objects:
        """The objects below a folder, with names relative to it."""

    @property
    @abstractmethod
    def is_local(self) -> bool:
        """Whether the objects are files of this machine."""


class LocalObjects(Objects):
    """Files below `root`, which the first write creates."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def __repr__(self) -> str:
        return f"LocalObjects({str(self.root)!r})"

    is_local = True

    def path(self, name: str) -> Path:
        """The file of an object."""
        return self.root / checked(name)

    def get(self, name: str) -> bytes:
        return self.path(name).read_bytes()

    def put(self, name: str, body: bytes) -> None:
        files.write_atomically(self.path(name), body)

    def put_if_absent(self, name: str, body: bytes) -> bool:
        path = self.path(name)
        files.make_folder(path.parent)
        with files.temporary_for(path) as temporary:
            temporary.write_bytes(body)
            files.sync(temporary)
            try:
                path.hardlink_to(temporary)
            except FileExistsError:
                return path.read_bytes() == body
            files.sync(path.parent)
        return True

    def put_file(self, name: str, path: Path) -> None:
        _copy(path, self.path(name))

    def local_copy(self, name: str) -> AbstractContextManager[Path]:
        path = self.path(name)
        path.stat()
        return nullcontext(path)

    def fetch_file(self, name: str, path: Path) -> None:
        _copy(self.path(name), path)

    def list(self, folder: str = "") -> Iterator[StoredObject]:
        top = self.path(folder) if folder else self.root
        found = []
        for path in top.rglob("*"):
            name = path.relative_to(self.root).as_posix()
            with suppress(FileNotFoundError):  # removed meanwhile
                if not any(part.startswith(".") for part in name.split("/")) and path.is_file():
                    status = path.stat()
                    found.append(StoredObject(name, status.st_size, status.st_mtime_ns))
        return iter(sorted(found))

    def folders(self, folder: str = "") -> tuple[str, ...]:
        top = self.path(folder) if folder else self.root
        try:
            found = [path.name for path in top.iterdir() if path.is_dir()]
        except FileNotFoundError:
            return ()
        return tuple(sorted(name for name in found if not name.startswith(".")))

    def exists(self, name: str) -> bool:
        return self.path(name).is_file()

    def delete(self, names: Iterable[str]) -> None:
        for name in names:
            self.path(name).unlink(missing_ok=True)

    def uri(self, name: str = "") -> str:
        return str(self.path(name) if name else self.root)

    def within(self, folder: str) -> LocalObjects:
        return LocalObjects(self.path(folder))


class RemoteObjects(Objects):
    """Objects of a store below `url`, with the store's own retries.

    Parameters
    ----------
    url
        `s3://bucket/prefix`, `gs://bucket/prefix` or `az://container/prefix`, without secrets.
    settings
        The endpoint, the credentials and the time limit.
    """

    def __init__(self, url: str, settings: StoreSettings) -> None:
        parts = urlsplit(url)
        self._base = f"{parts.scheme}://{parts.netloc}"
        self._prefix = parts.path.strip("/")
        self._settings = settings

    def __repr__(self) -> str:
        return f"RemoteObjects({self.uri()!r})"

    is_local = False

    @property
    def storage_options(self) -> dict[str, str]:
        """The endpoint and the credentials as deltalake and polars take them. Secret: never show them."""
        return self._settings.storage_options()

    def filesystem(self) -> Any:
        """The store as an fsspec filesystem, for DuckDB."""
        from nq_pipeline.lake.object_files import DataFiles

        return DataFiles(self._base.partition(":")[0], self._settings)

    def get(self, name: str) -> bytes:
        return bytes(self._object(name, lambda library, store, path: library.get(store, path).bytes()))

    def put(self, name: str, body: bytes) -> None:
        self._object(name, lambda library, store, path: library.put(store, path, body, max_concurrency=PARTS))

    def put_if_absent(self, name: str, body: bytes) -> bool:
        def create(library: Any, store: ObjectStore, path: str) -> bool:
            for attempt in range(1, CREATE_ATTEMPTS + 1):
                try:
                    library.put(store, path, body, mode="create", use_multipart=False)
                except library.exceptions.AlreadyExistsError:
                    # The answer to an earlier attempt may be lost, so only the content tells who stored it.
                    return bytes(library.get(store, path).bytes()) == body
                except library.exceptions.GenericError:  # the library does not repeat what may be done
                    if attempt == CREATE_ATTEMPTS:
                        raise
                else:
                    break
            return True

        return self._object(name, create)

    def put_file(self, name: str, path: Path) -> None:
        self._object(
            name, lambda library, store, target: library.put(store, target, path, max_concurrency=PARTS)
        )

    @contextmanager
    def local_copy(self, name: str) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(prefix="nq-") as folder:
            copy = Path(folder) / name.rpartition("/")[2]
            self.fetch_file(name, copy)
            yield copy

    def fetch_file(self, name: str, path: Path) -> None:
        size: int = self._object(name, lambda library, store, path: library.head(store, path))["size"]
        files.make_folder(path.parent)
        with files.temporary_for(path) as temporary:
            with temporary.open("wb") as file:
                for start in range(0, size, CHUNK_BYTES):
                    file.write(self._range(name, start, min(start + CHUNK_BYTES, size)))
            files.rename_durably(temporary, path)

    def _range(self, name: str, start: int, end: int) -> bytes:
        def read(library: Any, store: ObjectStore, path: str) -> bytes:
            return bytes(library.get_range(store, path, start=start, end=end))

        return self._object(name, read)

    def list(self, folder: str = "") -> Iterator[StoredObject]:
        skip = len(self._prefix) + 1 if self._prefix else 0

        def read(library: Any, store: ObjectStore, path: str) -> list[StoredObject]:
            return [
                StoredObject(one["path"][skip:], one["size"], to_ns(one["last_modified"]))
                for page in library.list(store, path or None)
                for one in page
            ]

        return iter(sorted(self._folder(folder, read)))

    def folders(self, folder: str = "") -> tuple[str, ...]:
        def read(library: Any, store: ObjectStore, path: str) -> Iterable[str]:
            return library.list_with_delimiter(store, path or None)["common_prefixes"]  # type: ignore[no-any-return]

        return tuple(sorted(path.rpartition("/")[2] for path in self._folder(folder, read)))

    def exists(self, name: str) -> bool:
        try:
            self._object(name, lambda library, store, path: library.head(store, path))
        except FileNotFoundError:
            return False
        return True

    def delete(self, names: Iterable[str]) -> None:
        paths = [self._path(checked(name)) for name in names]

        def remove(library: Any, store: ObjectStore, _: str) -> None:
            try:
                library.delete(store, paths)
            except FileNotFoundError:  # some stores stop there
                for path in paths:
                    with suppress(FileNotFoundError):
                        library.delete(store, path)

        if paths:
            self._folder("", remove)

    def uri(self, name: str = "") -> str:
        path = self._path(name and checked(name))
        return f"{self._base}/{path}" if path else self._base

    def within(self, folder: str) -> RemoteObjects:
        return RemoteObjects(self.uri(folder), self._settings)

    def _path(self, name: str) -> str:
        return "/".join(part for part in (self._prefix, name) if part)

    def _object(self, name: str, operation: Operation[Value]) -> Value:
        return self._perform(checked(name), operation)

    def _folder(self, name: str, operation: Operation[Value]) -> Value:
        return self._perform(name and checked(name), operation)

    def _perform(self, name: str, operation: Operation[Value]) -> Value:
        """The operation's result; `FileNotFoundError` or `StoreError`, which quote nothing at length."""
        import obstore

        try:
            return operation(obstore, _store(self._base, self._settings), self._path(name))
        except FileNotFoundError as error:
            if any(code in str(error) for code in NO_BUCKET):
                raise store_error(error, self._base) from None
            raise FileNotFoundError(f"there is no object {self.uri(name)}") from None
        except (obstore.exceptions.BaseError, OSError) as error:
            raise store_error(error, self._base) from None


NO_BUCKET = ("NoSuchBucket", "ContainerNotFound")
"""How stores name the fault of an address, not of a name."""


def _copy(source: Path, target: Path) -> None:
    files.make_folder(target.parent)
    with files.temporary_for(target) as temporary:
        shutil.copyfile(source, temporary)
        files.rename_durably(temporary, target)


CREATE_ATTEMPTS = 4
"""How often to try to create an object when it is unknown whether the last attempt did."""


def checked(name: str) -> str:
    """The name; `ValueError` if it could lead out of its folder, or is not the same in every store."""
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is not the name of an object")
    return name


_PART = r"[^./\\\0-\x1f%#?*\[\]{}\x7f][^/\\\0-\x1f%#?*\[\]{}\x7f]*"
_NAME = re.compile(f"{_PART}(/{_PART})*")


def store_error(error: Exception, place: str) -> StoreError:
    """The error of a store in one sentence, without anything that the store or the library said at length.

    Parameters
    ----------
    place
        The bucket's address.
    """
    text = str(error)
    code = _CODE.search(text) or _STATUS.search(text)
    reason = code[1] if code else "no answer"
    kind = type(error).__name__
    if kind in ("PermissionDeniedError", "UnauthenticatedError") or reason in _DENIED:
        what = f"refuses access ({reason}); check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and their rights"
    elif reason in NO_BUCKET:
        what = "does not exist; create the bucket or correct NQ_LAKE_URL"
    elif "credential" in text.lower() and not code:
        what = "needs credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    else:
        what = f"cannot be used ({reason}); check NQ_LAKE_URL and AWS_ENDPOINT_URL, then run it again"
    return StoreError(f"the object store {place} {what}")


_CODE = re.compile(r"<Code>(\w{1,60})</Code>")
_STATUS = re.compile(r"status code: (\d{3})")
_DENIED = ("AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "403", "401")


@lru_cache(maxsize=8)
def _store(base: str, settings: StoreSettings) -> ObjectStore:
    """The library's store of a bucket, shared so that connections are used again."""
    from obstore.store import AzureStore, GCSStore, S3Store

    scheme, bucket = base.split("://")
    limit = timedelta(seconds=settings.timeout_s)
    common: Mapping[str, Any] = {
        "retry_config": {"max_retries": 10, "retry_timeout": limit},
        "client_options": {
            "allow_http": settings.plain_http,
            "timeout": limit / 2,
        },
    }
    if scheme == "gs":
        return GCSStore(bucket, **common)
    if scheme == "az":
        return AzureStore(bucket, **common)
    config: Any = settings.s3_config()
    return S3Store(bucket, config=config, **common)
