"""Writing files: whole or not at all.

A file is written under a name of its own in the folder where it belongs, flushed to disk, then renamed: whoever opens
the path finds the old file or the new one, also after a crash or a full disk, and also where several processes write at
once.
"""

import contextlib
import errno
import fcntl
import os
import re
import secrets
import stat
import sys

#: Symbolic links that are followed, as the kernel does.
MOST_LINKS = 40
#: Bytes of a file's name that its temporary name takes over: most file systems allow 255.
STEM = 200


@contextlib.contextmanager
def writing(path):
    """A binary file, open for writing and reading, that takes the place of `path` once the block has ended without an error.

    Symbolic links are followed. A new file gets the permissions that ``open`` would give it, else those of the old one
    stay. What is there and is no regular file (a device, a pipe, /dev/stdout) is written to directly.

    Raises
    ------
    OSError
        There is no such folder, `path` is one, the file or folder is read-only, or the disk is full: the message names
        `path`, ``errno`` says what it was. The old file is as it was, and the temporary one is gone.
    """
    try:
        target = _target(path)
        if isinstance(target, int):
            if sys.stdout is not None:
                sys.stdout.flush()  # what was printed before comes first
            with os.fdopen(os.dup(target), "wb") as file:
                yield file
            return
        before = _status(target)
        if before is not None and not stat.S_ISREG(before.st_mode):
            with open(target, "wb") as file:
                yield file
            return
        handle, temporary = _create(target)
        with os.fdopen(handle, "w+b") as file:
            try:
                if before is not None:
                    with contextlib.suppress(OSError):  # who may not give files away owns this one
                        os.fchown(handle, before.st_uid, before.st_gid)
                    with contextlib.suppress(OSError):  # some file systems have no permissions
                        os.fchmod(handle, before.st_mode & 0o777)
                yield file
                file.flush()
                os.fsync(handle)
                os.replace(temporary, target)  # the file is still open, hence locked: see `_remove_stale`
            except BaseException:
                with contextlib.suppress(FileNotFoundError):
                    os.remove(temporary)
                with contextlib.suppress(OSError):  # what is left in the buffer
                    file.close()
                raise
        _flush_folder(os.path.dirname(target))
    except BrokenPipeError:  # whoever read has enough
        raise
    except OSError as error:
        raise _explained(path, error) from None


def check_writable(path, nbytes=0):
    """OSError, as from `writing`, where a file of `nbytes` bytes cannot be written at `path`: to be asked before the work."""
    try:
        target = _target(path)
        if isinstance(target, int):
            os.fstat(target)
            return
        before = _status(target)
        if before is not None and not stat.S_ISREG(before.st_mode):
            return
        handle, temporary = _create(target)
        os.remove(temporary)  # while it is locked: see `_remove_stale`
        os.close(handle)
        disk = os.statvfs(os.path.dirname(target))
    except OSError as error:
        raise _explained(path, error) from None
    free = disk.f_bavail * disk.f_frsize
    if disk.f_blocks and free < nbytes:  # some network file systems do not tell
        error = OSError(
            f"{path} cannot be written: the disk has {free / 2**20:,.1f} MiB left, the file needs {nbytes / 2**20:,.1f} MiB"
        )
        error.errno = errno.ENOSPC
        raise error


def same_file(path, other):
    """True where both paths lead to one regular file, or would if it were there."""
    target = _resolve(path)
    if isinstance(target, int) or target != _resolve(other):
        return False
    status = _status(target)
    return status is None or stat.S_ISREG(status.st_mode)


def reserve(file, nbytes):
    """Make the file `nbytes` long, with room on disk for all of them; OSError where there is not enough.

    A memory-mapped page without room on disk kills the process that writes to it.
    """
    if nbytes:
        os.posix_fallocate(file.fileno(), 0, nbytes)


def _explained(path, error):
    """The system's error with a message that names `path` and the reason; our own errors have one."""
    if error.errno is None:
        return error
    told = type(error)(f"{path} cannot be written: {error.strerror}")
    told.errno = error.errno
    return told


def _target(path):
    """What is to be written, checked: the path behind all symbolic links, or the number of a file descriptor."""
    if os.path.isdir(path):
        raise IsADirectoryError(f"{path} can not be written: it is a folder; name a file in it")
    target = _resolve(path)
    if isinstance(target, int):
        return target
    folder, name = os.path.split(target)
    if not name or not os.path.isdir(folder):
        raise FileNotFoundError(f"{path} can not be written: there is no such folder")
    if os.path.exists(target) and not os.access(target, os.W_OK):
        raise PermissionError(f"{path} cannot be written: the file is read-only")
    return target


def _resolve(path):
    """The path behind all symbolic links; of /dev/stdout, /dev/fd/3 and the like, the number of the file descriptor.

    A descriptor is written to as it is: opening its path anew would start at the beginning of a redirected file.
    """
    own, path = {f"/proc/{os.getpid()}/fd", "/dev/fd"}, os.path.join(os.getcwd(), os.fsdecode(path))
    for _ in range(MOST_LINKS):
        folder, name = os.path.split(path)
        folder = os.path.realpath(folder)
        if folder in own and name.isdecimal():
            return int(name)
        path = os.path.join(folder, name)
        if not os.path.islink(path):
            return path
        path = os.path.join(folder, os.readlink(path))
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)


def _status(path):
    try:
        return os.stat(path)
    except FileNotFoundError:
        return None


def _create(target):
    """(descriptor, path) of a new file beside `target`, which this process has locked; removes what killed writers left."""
    folder, name = os.path.split(target)
    stem = "." + os.fsdecode(os.fsencode(name)[:STEM])
    _remove_stale(folder, stem)
    while True:
        temporary = os.path.join(folder, f"{stem}.{os.getpid()}-{secrets.token_hex(4)}.part")
        with contextlib.suppress(FileExistsError):
            handle = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:  # another process is about to remove it as stale
                os.close(handle)
                continue
            except OSError:  # a file system without locks: there nothing is removed, either
                return handle, temporary
            if os.fstat(handle).st_nlink:
                return handle, temporary
            os.close(handle)


def _remove_stale(folder, stem):
    """Remove temporary files of writers that were killed: no process holds their lock, which goes with the process."""
    pattern = re.compile(re.escape(stem) + r"\.[0-9]+-[0-9a-f]{8}\.part")
    with contextlib.suppress(OSError):  # a folder that may not be listed
        for name in filter(pattern.fullmatch, os.listdir(folder)):
            with contextlib.suppress(OSError):  # it is being written, or somebody else's, or gone
                path = os.path.join(folder, name)
                handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    os.remove(path)
                finally:
                    os.close(handle)


def _flush_folder(folder):
    """The new name reaches the disk, too, where the file system can do that."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
