"""Files of one line per entry, added to by programs that may be killed in the middle of a line."""

import os


def append_line(path: str | os.PathLike, line: str, sync: bool = False) -> None:
    """Add `line` and a line break to a UTF-8 text file; made if missing, its folder is not.

    If the file ends within a line, the new one does not continue that. sync: wait until the line is on the disk.

    Raises OSError; then part of the line may be in the file.
    """
    with open(path, "ab+", buffering=0) as file:
        data = f"{line}\n".encode()
        if file.seek(0, os.SEEK_END) > 0:
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                data = b"\n" + data
        write_all(file, data)
        if sync:
            os.fsync(file.fileno())


def write_all(file, data: bytes) -> None:
    """Write all of `data` to an unbuffered file, which alone may take only a part. Raises OSError."""
    remaining = memoryview(data)
    while remaining:
        remaining = remaining[file.write(remaining) :]
