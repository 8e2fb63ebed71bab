"""How a process notices that another one has ended: a connection that the system closes."""

from __future__ import annotations

import contextlib
import os
import socket

import torch.distributed as dist

POLL_SECONDS = 0.05
CONNECT_SECONDS = 10
GOODBYE = b"."


class LostProcessError(RuntimeError):
    """Another process of the world has ended before its time."""


class Lifelines:
    """Connections between the main process and each other one, {rank of the other end: connection}.

    The system closes them when the process at an end ends, and be it by kill -9. Nothing but `GOODBYE` travels on
    them, so a process may be as slow as it likes.
    """

    def __init__(self, ends: dict[int, socket.socket]) -> None:
        self.ends = ends
        for end in ends.values():
            end.setblocking(False)
        if ends:  # a process that loads images would hold its parent's connections open beyond the parent's end
            os.register_at_fork(after_in_child=self.close)

    def check(self) -> None:
        """Raise LostProcessError if the process at an end has ended without saying goodbye."""
        for rank, end in list(self.ends.items()):
            try:
                message = end.recv(1)
            except BlockingIOError:  # nothing said: it is there
                continue
            except OSError:
                message = b""
            if message != GOODBYE:
                raise LostProcessError(f"process {rank}: connection closed by peer")
            self.ends.pop(rank).close()

    def say_goodbye(self) -> None:
        for end in self.ends.values():
            with contextlib.suppress(OSError):
                end.send(GOODBYE)
        self.close()

    def close(self) -> None:
        """Let go of this process's ends."""
        for end in self.ends.values():
            end.close()
        self.ends.clear()


def accept(listener: socket.socket, word: str, count: int, store: dist.Store) -> dict[int, socket.socket]:
    """The main process's ends, once each of `count` others has come with `word`, or has left word that it cannot."""
    ends: dict[int, socket.socket] = {}
    listener.settimeout(POLL_SECONDS)
    while len(ends) + store.add("untied", 0) < count:
        with contextlib.suppress(OSError):  # a timeout, most often
            end, _ = listener.accept()
            end.settimeout(CONNECT_SECONDS)
            sent_word, _, rank = end.recv(64).decode(errors="replace").partition(" ")
            if sent_word == word:
                ends[int(rank)] = end
            else:
                end.close()
    return ends


def connect(port: int, word: str, rank: int, store: dist.Store) -> dict[int, socket.socket]:
    """The end of process `rank`, or none where the network lets no connection through."""
    try:
        end = socket.create_connection((os.environ["MASTER_ADDR"], port), CONNECT_SECONDS)
        end.sendall(f"{word} {rank}".encode())
    except OSError:
        store.add("untied", 1)
        return {}
    return {0: end}
