"""Free texts: what errors, users and other peers say, made fit for messages and logs."""

from ringhaul.limits import TEXT_LENGTH_MAX


def printable(text: str, length: int = TEXT_LENGTH_MAX) -> str:
    """The text on one line, at most `length` characters of it; what cannot be shown is escaped.

    What comes out can be encoded: half a surrogate pair, which JSON and file names may hold,
    would make a message that cannot be sent, and would be tried for ever.
    """
    text = text[:length]
    if not text.isprintable():
        text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)[:length]
    return text


def describe_error(error: BaseException) -> str:
    """Kind and text of an exception of anybody's: printable, even if it cannot be shown."""
    try:
        text = str(error)
    except Exception:
        text = ""
    kind = type(error).__name__
    return printable(f"{kind}: {text}" if text else kind)
