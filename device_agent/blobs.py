"""Files known by their SHA-256: written by the transport, verified here, renamed into place."""

import hashlib
import os
import uuid

CHUNK_BYTES = 1 << 20


class BlobError(Exception):
    """A blob is missing, corrupt, or there is no room for it."""


def sha256_of(path):
    """Hexadecimal SHA-256 of a file's content."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        for chunk in iter(lambda: stream.read(CHUNK_BYTES), b""):
            digest.update(chunk)
    return digest.hexdigest()


def path_of(cache_dir, sha256):
    """Where the blob lies, or would lie."""
    return os.path.join(cache_dir, "blobs", sha256)


def require(cache_dir, sha256):
    """Path of a blob that must be there; ``BlobError`` if it is not."""
    path = path_of(cache_dir, sha256)
    if not os.path.isfile(path):
        raise BlobError("blob %s is not on the board: upload it first" % sha256)
    return path


def has(cache_dir, sha256):
    """Whether the blob is here; being asked for keeps it from the next clean-up."""
    path = path_of(cache_dir, sha256)
    if not os.path.isfile(path):
        return False
    os.utime(path, None)
    return True


def incoming(cache_dir, sha256, token):
    """Path of a blob that is still being written."""
    return os.path.join(cache_dir, "blobs", "incoming", "%s.%s" % (sha256, token))


def begin(cache_dir, sha256, size_bytes):
    """A fresh token and path for the transport to write to; ``BlobError`` if the disk is full."""
    token = uuid.uuid4().hex
    path = incoming(cache_dir, sha256, token)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    disk = os.statvfs(os.path.dirname(path))
    free_bytes = disk.f_bavail * disk.f_frsize
    if size_bytes > free_bytes:
        raise BlobError(
            "%d bytes do not fit on the board's disk: %d are free; make room, or set cache_dir"
            % (size_bytes, free_bytes)
        )
    return token, path


def commit(cache_dir, sha256, token):
    """Size of the blob, which has been verified and is now in place; a corrupt one is removed."""
    path = incoming(cache_dir, sha256, token)
    if not os.path.isfile(path):
        raise BlobError("nothing was written to %s" % path)
    found = sha256_of(path)
    if found != sha256:
        os.remove(path)
        raise BlobError("the bytes that arrived have SHA-256 %s, not %s" % (found, sha256))
    size_bytes = os.path.getsize(path)
    os.replace(path, path_of(cache_dir, sha256))
    return size_bytes


def adopt(cache_dir, path):
    """SHA-256 and path of the blob that a file written on the board itself has become."""
    sha256 = sha256_of(path)
    os.replace(path, path_of(cache_dir, sha256))
    return sha256, path_of(cache_dir, sha256)
