"""Readers: data on disk to samples, one record at a time and only when it is asked for.

A new format is a class with the members of `Reader`, a name in `Format` and a line in `open_reader`.
"""

from llavit.data.readers.arrow import ArrowReader
from llavit.data.readers.json_file import JsonReader
from llavit.data.readers.opening import Format, detect_format, open_reader
from llavit.data.readers.protocol import Reader
from llavit.data.readers.tar import TarReader

__all__ = ["ArrowReader", "Format", "JsonReader", "Reader", "TarReader", "detect_format", "open_reader"]
