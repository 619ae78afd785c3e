"""Text files as UTF-8 whatever they are stored in: what is not UTF-8 is recognised by proof over the whole file, never guessed from its beginning."""

import codecs
import gzip
import io
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

from .base import CHUNK, invalid

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

MAX_UNPACKED = 64 * 2**30  # bytes; a gzip archive can grow a thousandfold
_SAVE = "Save it as UTF-8."
_UTF8_BOM, _UTF16_BOMS, _UTF32_BOMS = codecs.BOM_UTF8, (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE), (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)
_NOT_ASCII = re.compile(r"[^\x00-\x7f]")
_CHINESE = re.compile(r"[^\x00-\x7f\u3040-\u30ff]")  # without kana, which Japanese encodings place alike
_SURE = 0.75  # of the characters of Chinese text are in GB 2312 (real text: nearly all); of other encodings misread as GB18030 far fewer are


class Encoding(StrEnum):
    """Encodings that are read, by the names that reports show."""

    UTF8 = "UTF-8"
    UTF8_BOM = "UTF-8 with BOM"
    UTF16 = "UTF-16"
    GB18030 = "GB18030"

    @property
    def codec(self) -> str:
        """Python's name of it."""
        return "utf-8-sig" if self is Encoding.UTF8_BOM else self.value.lower()


@dataclass(frozen=True)
class Packed:
    """A file, gzip or plain. `uri` is the name that its user knows."""

    uri: str
    path: Path
    gzip: bool

    def open(self) -> BinaryIO:
        """Its bytes, unpacked."""
        return cast("BinaryIO", gzip.open(self.path)) if self.gzip else self.path.open("rb")

    def chunks(self) -> Iterator[bytes]:
        """Its bytes in pieces. Raises StepError for a damaged archive and for one that unpacks to more than MAX_UNPACKED bytes."""
        unpacked = 0
        with self.open() as stream:
            while True:
                try:
                    chunk = stream.read(CHUNK)
                except (gzip.BadGzipFile, EOFError, zlib.error) as error:
                    raise invalid(f"{self.uri} is a damaged gzip archive: {error}. Pack and upload it again.") from error
                if not chunk:
                    return
                unpacked += len(chunk)
                if self.gzip and unpacked > MAX_UNPACKED:
                    raise invalid(f"{self.uri} unpacks to more than {MAX_UNPACKED:,} bytes. Split it, or give it unpacked.")
                yield chunk

    def open_text(self, encoding: Encoding) -> BinaryIO:
        """Its text as UTF-8 without a byte order mark."""
        if encoding is Encoding.UTF8:
            return self.open()
        return io.BufferedReader(_Recoded(self.open(), encoding.codec), CHUNK)


class _Recoded(io.RawIOBase):
    """The text of a stream, encoded anew in UTF-8."""

    def __init__(self, source: BinaryIO, codec: str) -> None:
        self._source = source
        self._decoder = codecs.getincrementaldecoder(codec)()
        self._ready = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "WriteableBuffer") -> int:
        target = memoryview(buffer).cast("B")
        while not self._ready:
            chunk = self._source.read(CHUNK)
            self._ready = self._decoder.decode(chunk, final=not chunk).encode()
            if not chunk:
                break
        size = min(len(target), len(self._ready))
        target[:size], self._ready = self._ready[:size], self._ready[size:]
        return size

    def close(self) -> None:
        self._source.close()
        super().close()


def recognise(file: Packed, head: bytes, *, by_line: bool) -> Encoding:
    """The encoding of a text file that begins with `head`.

    Raises StepError with the byte position for a file in none of the encodings; `by_line`: every line is judged on its own later, so that such a file
    is UTF-8 with some bad lines.
    """
    if head.startswith(_UTF32_BOMS):
        raise invalid(f"{file.uri} is UTF-32 text. {_SAVE}")
    if head.startswith(_UTF16_BOMS):
        if wrong := _first_error(file, Encoding.UTF16):
            raise invalid(f"{file.uri} begins as UTF-16 text and is not valid UTF-16 {wrong}. {_SAVE}")
        return Encoding.UTF16
    if b"\0" in head[:4]:
        raise invalid(f"{file.uri} has a zero byte at byte {head.index(0) + 1}: it is binary, or UTF-16 text without a byte order mark. {_SAVE}")
    encoding = Encoding.UTF8_BOM if head.startswith(_UTF8_BOM) else Encoding.UTF8
    wrong = _first_error(file, encoding)
    if not wrong:
        return encoding
    if encoding is Encoding.UTF8 and _is_gb18030(file):
        return Encoding.GB18030
    if by_line and encoding is Encoding.UTF8:
        return encoding
    raise invalid(f"{file.uri} is not UTF-8 {wrong}, and neither UTF-16 nor Chinese text in GB18030. {_SAVE}")


def _first_error(file: Packed, encoding: Encoding, look: Callable[[str], None] = lambda _: None) -> str:
    """Where and why the file is not in this encoding; empty if it is. `look` sees all of its text, in pieces."""
    decoder = codecs.getincrementaldecoder(encoding.codec)()
    at = 0  # bytes before the piece
    try:
        for chunk in file.chunks():
            waiting = len(decoder.getstate()[0])
            look(decoder.decode(chunk))
            at += len(chunk)
        waiting = len(decoder.getstate()[0])
        look(decoder.decode(b"", final=True))
    except UnicodeDecodeError as error:
        return f"at byte {at - waiting + error.start + 1:,} ({error.reason})"
    return ""


def _is_gb18030(file: Packed) -> bool:
    """Whether the file is valid and reads as Chinese text: nearly every sequence of bytes of other encodings is valid GB18030, too."""
    characters = chinese = 0

    def count(text: str) -> None:
        nonlocal characters, chinese
        characters += len(_NOT_ASCII.findall(text))
        chinese += len(_CHINESE.findall(text.encode("gb2312", "ignore").decode("gb2312")))

    return not _first_error(file, Encoding.GB18030, count) and chinese >= _SURE * characters
