"""Experts on an object store such as S3, by which machines share them that have no folder in common.

The environment variable LIMBECK_EXPERTS is a URL of fsspec, s3://BUCKET/FOLDER for instance. There every store has a
folder, named by its content as on a disk and with the same files. The store on a machine's disk is a copy of it.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import platform
import re
import secrets
import threading
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from limbeck.core.errors import UserError, WriteError
from limbeck.core.files import content_key, write_atomically
from limbeck.core.text import printable
from limbeck.experts.share import Claim, ExpertPlace
from limbeck.experts.store import Expert, Store

log = logging.getLogger(__name__)
VARIABLE = "LIMBECK_EXPERTS"
RENEW_SECONDS = 20.0
"""How often a process writes its claim again."""
LEASE_SECONDS = 120.0
"""A claim that nobody has written for so long is that of a dead process."""
LIST_SECONDS = 2.0
"""How old a list of names may be that says which experts there are."""
OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
EXPERT = re.compile(r"expert-(\d+)\.safetensors")


class Lease:
    """A claim on an object store: an object that is written again and again until the claim is released."""

    def __init__(self, files: Any, path: str, owner: str):
        self.files, self.path, self.owner = files, path, owner
        self.count, self.is_released = 0, threading.Event()
        self.thread = threading.Thread(target=self._renew, daemon=True)
        self.thread.start()

    @staticmethod
    def content(owner: str, count: int) -> bytes:
        """What the object says: the process, and how often it has written."""
        return json.dumps({"owner": owner, "count": count}).encode()

    def _renew(self) -> None:
        while not self.is_released.wait(RENEW_SECONDS):
            self.count += 1
            try:
                self.files.pipe_file(self.path, self.content(self.owner, self.count))
            except Exception:  # whatever the client of the object store raises; the next renewal may succeed
                log.debug("the claim %s was not renewed", self.path, exc_info=True)

    def release(self) -> None:
        """Remove the object, where it is still this process's."""
        self.is_released.set()
        self.thread.join()  # else a renewal on its way would write the object again
        with suppress(Exception):  # then it ends by its age
            if json.loads(self.files.cat_file(self.path))["owner"] == self.owner:
                self.files.rm_file(self.path)


@dataclass(frozen=True)
class Bucket:
    """The folder of one store on an object store.

    files: The file system of fsspec. path: The folder in it. url: The folder as messages name it.
    """

    files: Any
    path: str
    url: str
    ages: dict[int, tuple[bytes, float]] = field(default_factory=dict, repr=False)
    """What each claim of another process says, and since when."""

    @classmethod
    def find(cls, name: str) -> Bucket | None:
        """The folder `name` at the URL of $LIMBECK_EXPERTS; None where this is not set.

        Raises UserError where the URL cannot be used.
        """
        root = os.environ.get(VARIABLE, "").rstrip("/")
        if not root:
            return None
        protocol, separator, _ = root.partition("://")
        if not separator or protocol in ("file", "local"):
            raise UserError(
                f"{VARIABLE} is the URL of an object store, like s3://BUCKET/FOLDER, and {root} is none; for a folder "
                "that machines share set LIMBECK_HOME."
            )
        from fsspec.core import url_to_fs  # takes 50 ms to import

        url = f"{root}/{name}"
        with remote_errors(url):
            files, path = url_to_fs(url, listings_expiry_time=LIST_SECONDS)
        return cls(files, path, url)

    def indices(self) -> set[int]:
        """The experts that are there, as of at most `LIST_SECONDS` ago."""
        with remote_errors(self.url):
            try:
                names = self.files.ls(self.path, detail=False)
            except FileNotFoundError:
                return set()
        matches = (EXPERT.fullmatch(name.rpartition("/")[2]) for name in names)
        return {int(match[1]) for match in matches if match}

    def download(self, name: str, path: Path) -> bool:
        """Copy a file to `path`; False where it is gone."""

        def fetch(temporary: Path) -> None:
            with remote_errors(self.url):
                self.files.get_file(f"{self.path}/{name}", str(temporary))

        with remote_errors(self.url):
            if not self.files.exists(f"{self.path}/{name}"):
                return False
        write_atomically(path, fetch)
        return True

    def upload(self, path: Path) -> None:
        """Copy a file there; others see all of it or nothing."""
        with remote_errors(self.url):
            self.files.put_file(str(path), f"{self.path}/{path.name}")
            self.files.invalidate_cache(self.path)

    def try_claim(self, index: int, owner: str) -> Lease | None:
        """Claim an expert by an object that is written only where there is none; None where another process has.

        A claim that nobody renews is taken over. Where two processes do so at once both compute the expert, and write
        the same bits.
        """
        folder = f"{self.path}/claims"
        path = f"{folder}/{index:04d}"
        with remote_errors(self.url):
            if self._create(path, owner):
                return Lease(self.files, path, owner)
            try:
                content = self.files.cat_file(path)
            except FileNotFoundError:  # released meanwhile
                return None
            before, since = self.ages.get(index, (b"", 0.0))
            if content != before:
                self.ages[index] = (content, time.monotonic())
            elif time.monotonic() - since > LEASE_SECONDS:
                log.info("the claim %s was not renewed for %d s, and is taken over", path, LEASE_SECONDS)
                self.files.rm_file(path)
                return Lease(self.files, path, owner) if self._create(path, owner) else None
        return None

    def _create(self, path: str, owner: str) -> bool:
        """Write a claim where there is none: S3 does so by If-None-Match."""
        try:
            self.files.pipe_file(path, Lease.content(owner, 0), mode="create")
        except FileExistsError:
            return False
        except OSError:  # S3 says 412, and not every client knows what it means
            self.files.invalidate_cache(path.rpartition("/")[0])
            if not self.files.exists(path):
                raise
            return False
        return True


@dataclass(frozen=True)
class SharedStore:
    """A store whose experts are copied from and to a bucket."""

    store: Store
    bucket: Bucket

    @property
    def path(self) -> Path:
        """The folder of the store."""
        return self.store.path

    def missing(self, indices: Collection[int]) -> list[int]:
        """Those of these experts that neither has; what one of the two has is copied to the other."""
        here, there = set(self.store.indices()), self.bucket.indices()
        for index in sorted(set(indices) & (here - there)):
            self._upload(index)
        for index in sorted(set(indices) & (there - here)):
            if self._download(index):
                here.add(index)
        return sorted(set(indices) - here)

    def try_claim(self, index: int) -> Claim | None:
        """Claim an expert, first among the processes that share the disk, and then among all."""
        local = self.store.try_claim(index)
        if local is None:
            return None
        try:
            lease = self.bucket.try_claim(index, owner_name())
        except BaseException:
            local.release()
            raise
        if lease is None:
            local.release()
            return None
        return Claims(local, lease)

    def write(self, index: int, expert: Expert) -> None:
        """Write one expert to the disk, and then to the bucket."""
        self.store.write(index, expert)
        self._upload(index)

    def _upload(self, index: int) -> None:
        self.bucket.upload(self.path / "store.json")
        self.bucket.upload(self.store.file(index))

    def _download(self, index: int) -> bool:
        """Copy an expert here, and verify it; False where it is gone. UserError where it is damaged."""
        file = self.store.file(index)
        if not self.bucket.download(file.name, file):
            return False
        try:
            self.store.read(index, lazy=True)
        except UserError as error:
            file.unlink()
            reason = str(error).removeprefix(f"{file} ").partition(";")[0]
            name = f"{self.bucket.url}/{file.name}"
            raise UserError(f"{name} {reason}; delete it there, and repeat the command.") from None
        return True


@dataclass(frozen=True)
class Claims:
    """Two claims that are released together."""

    local: Claim
    lease: Claim

    def release(self) -> None:
        """Release both."""
        self.lease.release()
        self.local.release()


def store_name(description: dict[str, Any]) -> str:
    """The name of a store of this description: of its data, its network, and its content."""
    network = description["model"]["name"].replace(":", "-")  # a user's own is MODULE:NAME
    return f"{description['data']['name']}-{network}-{content_key(description)}"


def place_of(store: Store) -> ExpertPlace:
    """The store alone, or with its folder at the URL of $LIMBECK_EXPERTS where this is set."""
    bucket = Bucket.find(store_name(store.header.description()))
    return store if bucket is None else SharedStore(store, bucket)


def owner_name() -> str:
    """A name for a claim of this process, which no other claim has."""
    return f"process {os.getpid()} on {platform.node()}, {secrets.token_hex(8)}"


@contextmanager
def remote_errors(url: str) -> Iterator[None]:
    """Raise one sentence for whatever the client of an object store raises inside a `with` block.

    That is UserError for a URL, a package or permissions that are wrong, and WriteError for faults of the machines.
    """
    try:
        yield
    except (UserError, WriteError):
        raise
    except OSError as error:
        if error.errno in OF_THE_DISK:  # that of this machine, to which a file is copied
            raise
        raise _unreachable(url, error) from error
    except ImportError as error:
        remedy = "pip install 'limbeck[s3]'" if url.startswith("s3:") else "install the package that it names"
        raise UserError(f"{VARIABLE} {url} cannot be opened ({_reason(error)}); {remedy}.") from None
    except Exception as error:
        raise _unreachable(url, error) from error


def _unreachable(url: str, error: Exception) -> UserError | WriteError:
    sentence = f"{url} cannot be reached ({_reason(error)}); look after {VARIABLE} and your access to it"
    if isinstance(error, (ValueError, PermissionError, FileNotFoundError)) or "Credentials" in type(error).__name__:
        return UserError(f"{sentence}.")
    advice = "experts that are finished are kept here, and the same command goes on"
    return WriteError(getattr(error, "errno", None) or errno.EIO, str(error), f"{sentence}; {advice}.")


def _reason(error: Exception) -> str:
    return printable(" ".join(str(error).split()), 120) or type(error).__name__
