"""The one error type that users are meant to see, and what they see it through."""

import os
import sys

LONGEST = 1200  # characters of a message; the middle of a longer one is left out


def one_line(text: str, longest: int = LONGEST) -> str:
    """`text` as one line that is safe on a terminal: white space becomes blanks, what cannot be printed is escaped.

    Names of files and flags come from outside, and may hold line breaks, terminal commands or bytes of no encoding.
    """
    text = _shortened(text, 10 * longest)  # so that the work on it is bounded
    text = "".join(c if c.isprintable() or c.isspace() else c.encode("unicode_escape").decode() for c in text)
    return _shortened(" ".join(text.split()), longest)


def show(text: str) -> None:
    """Print a page of text; a reader that has seen enough (`| head`) is no error."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter complains at its end


def _shortened(text: str, longest: int) -> str:
    first = longest * 2 // 3
    return text if len(text) <= longest else f"{text[:first]} … {text[first + 3 - longest :]}"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the machine or a GPU had no memory left, in Python's words or in those of torch."""
    if isinstance(error, MemoryError):
        return True
    signs = ["out of memory", "allocate memory", "unable to allocate", "bad_alloc", "alloc_failed"]
    signs.append("could not create a primitive")  # oneDNN's word where it gets no memory for one
    return isinstance(error, RuntimeError | OSError) and any(sign in str(error).lower() for sign in signs)


class UserError(ValueError):
    """Bad input: a flag, a file or a combination that cannot work.

    The message is one line that names the cause and the cure, made printable by `one_line`. Scripts print it to stderr
    and exit with code 2.
    """

    def __init__(self, message: str) -> None:
        super().__init__(one_line(str(message)))


class MemoryUserError(UserError):
    """Memory ran out: as `UserError`, with what needs less of it."""

    def __init__(self, error: BaseException) -> None:
        text = str(error).strip() or type(error).__name__
        reason = text if text.lower().startswith("out of memory") else f"out of memory ({one_line(text, 200)})"
        super().__init__(
            f"{reason}: lower --batch_size (fine-tuning: --ft_batch_size, grids: --sample_size, --gen_images), or "
            "raise --accumulate, which goes through a batch in parts"
        )


def explained(error: Exception) -> str | None:
    """What users are told, in one line, of an error that is no fault of the program; None of any other."""
    if isinstance(error, UserError):
        return str(error)
    if is_out_of_memory(error):
        return str(MemoryUserError(error))
    if isinstance(error, OSError):
        return one_line(f"{error.filename or 'the system'}: {error.strerror or error}")
    return None
